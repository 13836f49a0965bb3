-- Sessions. s:ID is a hash; alive: the living by the instant (steady) at which their ttl is over; dead: the dead by number.
-- l:ID: its leases, request and number (8 bytes) -> job; x:ID: those of them that are asked to stop.

local function session_key(id)
  return P .. 's:' .. id
end

local function is_alive(id)
  return call('ZSCORE', P .. 'alive', id)
end

local function tail_of(claim)
  return string.sub(claim, 17)
end

local function request_of(tail)
  return (struct.unpack('>I6', tail))
end

local function revive(id, ttl)
  call('ZADD', P .. 'alive', steady + ttl, id)
end

local function take_pulse()
  call('HSET', P .. 'meta', 'pulse', steady)
end

-- The server's clock may be set back: nobody has beaten in the future.
local function mend_clock(pulse)
  take_pulse()
  for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
    local latest = steady + (tonumber(call('HGET', session_key(id), 'ttl')) or 0)
    call('ZADD', P .. 'alive', 'LT', latest, id)
  end
end

-- When nobody has beaten for a session's whole ttl, the store was away, not the workers: one more ttl, once.
local function spare_after_outage()
  local state = call('HMGET', P .. 'meta', 'pulse', 'least_ttl')
  if not state[1] then
    return
  end
  local pulse, least = tonumber(state[1]), tonumber(state[2] or 0)
  if pulse > steady then
    mend_clock()
  elseif steady - pulse > least then
    for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
      local about = call('HMGET', session_key(id), 'ttl', 'spared')
      if about[1] and not about[2] and steady - pulse > tonumber(about[1]) then
        call('HSET', session_key(id), 'spared', 1)
        revive(id, tonumber(about[1]))
      end
    end
  end
end

local function kill(id)
  local about = call('HMGET', session_key(id), 'number', 'ttl')
  local number, ttl = about[1] or 0, tonumber(about[2] or 0)
  call('HSET', session_key(id), 'dead_at', wall, 'beat_at', tonumber(is_alive(id) or steady) - ttl)
  call('ZREM', P .. 'alive', id)
  call('ZADD', P .. 'dead', number, id)
end

-- The leases of a session as {tail, job's id}, in the order in which they were given: the first `most`, of those that `is_wanted`
-- (both may be nil). Their jobs are read.
local function leases_of(session, most, is_wanted)
  local stored, leases = call('HGETALL', P .. 'l:' .. session), {}
  for i = 1, #stored, 2 do
    if not is_wanted or is_wanted(stored[i]) then
      leases[#leases + 1] = { stored[i], stored[i + 1] }
    end
  end
  table.sort(leases, function(one, other)
    return struct.unpack('>I8', one[1]) < struct.unpack('>I8', other[1])
  end)
  local ids = {}
  for i = #leases, (most or #leases) + 1, -1 do
    leases[i] = nil
  end
  for i, lease in ipairs(leases) do
    ids[i] = lease[2]
  end
  prefetch(ids)
  return leases
end

-- The job of a lease, if it still says so itself; a lease without its job, or with another, is taken off.
local function leased(session, tail, id)
  local job = load(id)
  if job and job[F.status] == S.RUNNING and job[F.claim] == session .. tail then
    return job
  end
  call('HDEL', P .. 'l:' .. session, tail)
  call('SREM', P .. 'x:' .. session, tail)
  return false
end
