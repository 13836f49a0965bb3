-- The sessions that are alive, and the dead that still have leases. The reply: msgpack, for each: id, name, ttl, what it told of
-- itself, when it registered, microseconds since its last beat, leases, whether it is dead.

local rows = {}
local function tell(id, is_dead)
  local about = call('HMGET', session_key(id), 'name', 'about', 'registered_at', 'beat_at')
  local leases = call('HLEN', P .. 'l:' .. id)
  if not is_dead or leases > 0 then
    local ttl = ttl_of(id)
    local silent = steady - (is_dead and tonumber(about[4]) or steady)
    if not is_dead then
      silent = steady - (tonumber(is_alive(id)) - ttl)
    end
    rows[#rows + 1] = { id, about[1], ttl, about[2], tonumber(about[3]) or false, math.max(0, silent), leases, is_dead }
  end
end

for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
  tell(id, false)
end
for _, id in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
  tell(id, true)
end
return cmsgpack.pack(rows)
