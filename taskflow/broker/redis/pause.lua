-- Pauses a queue or ends its pause. Arguments: name, whether it is to pause.

local name, pauses = given[1], given[2]
if pauses then
  call('SADD', P .. 'paused', name)
  call('ZREM', P .. 'ready', name)
else
  call('SREM', P .. 'paused', name)
  local queue = call('HGET', P .. 'names', 'q:' .. name)
  if queue and tonumber(call('HGET', P .. 'counts', queue .. ':' .. S.READY) or 0) > 0 then
    call('ZADD', P .. 'ready', 0, name)
  end
  call('PUBLISH', P .. 'nudges', 'queue:' .. name .. '\nqueues')
end
return redis.status_reply('OK')
