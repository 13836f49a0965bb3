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

-- The session's time to live; where what is stored is none, the default from now on.
local LONGEST_TTL = 2 ^ 53
local function ttl_of(id)
  local stored = call('HGET', session_key(id), 'ttl')
  local ttl = tonumber(stored)
  if not (ttl and ttl >= 0 and ttl <= LONGEST_TTL) then
    ttl = R.session_ttl
    call('HSET', session_key(id), 'ttl', ttl)
  end
  return ttl
end

local function revive(id, ttl)
  call('ZADD', P .. 'alive', steady + ttl, id)
end

local function take_pulse()
  call('HSET', P .. 'meta', 'pulse', steady)
end

-- Than its time to live from now.
local function no_session_lives_longer()
  for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
    call('ZADD', P .. 'alive', 'LT', steady + ttl_of(id), id)
  end
end

-- When nobody has beaten for a session's whole ttl, the store was away, not the workers: one more ttl, once.
local function spare_after_outage()
  local state = call('HMGET', P .. 'meta', 'pulse', 'least_ttl')
  local pulse, least = tonumber(state[1]), tonumber(state[2]) or 0
  if not pulse then
    return
  end
  if pulse > steady then -- the server's clock was set back: nobody has beaten in the future
    take_pulse()
    no_session_lives_longer()
  elseif steady - pulse > least then
    for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
      local ttl = ttl_of(id)
      if steady - pulse > ttl and call('HSETNX', session_key(id), 'spared', 1) == 1 then
        revive(id, ttl)
      end
    end
  end
end

local function kill(id)
  local number = tonumber(call('HGET', session_key(id), 'number'))
  number = number and number >= 0 and number or 0 -- no NaN either
  call('HSET', session_key(id), 'dead_at', wall, 'beat_at', tonumber(is_alive(id) or steady) - ttl_of(id))
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
  recount() -- whatever ends a lease takes it off: the job has vanished, or somebody else has written it
  return false
end
