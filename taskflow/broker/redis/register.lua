-- Makes a session known. Arguments: id, name, ttl (microseconds), what is told of it. The reply: "OK", or "LOST" when it is dead.

local id, name, ttl, about = given[1], given[2], given[3], given[4]
spare_after_outage()
if call('EXISTS', session_key(id)) == 0 then
  local number = call('HINCRBY', P .. 'meta', 'sessions', 1)
  call('HSET', session_key(id), 'name', name, 'ttl', ttl, 'about', about, 'registered_at', wall, 'number', number, 'request', 0)
  revive(id, ttl)
  local least = tonumber(call('HGET', P .. 'meta', 'least_ttl') or ttl)
  call('HSET', P .. 'meta', 'least_ttl', math.min(least, ttl))
elseif not is_alive(id) then
  return redis.status_reply('LOST')
end
take_pulse()
return redis.status_reply('OK')
