-- Sessions, their leases and their heartbeats. base.lua lists the keys.

-- === part sessions =========================================================================================
local function session_key(id)
  return P .. 'session:' .. id
end

local function is_alive(id)
  return call('ZSCORE', P .. 'alive', id)
end

-- Returns the ttl of the session. An invalid value is replaced by the default.
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

local function extend(id, ttl)
  call('ZADD', P .. 'alive', steady + ttl, id)
end

local function note_heartbeat()
  call('HSET', P .. 'meta', 'pulse', steady)
end

-- Limits the end of each session to its ttl from now.
local function limit_sessions_to_ttl()
  for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
    call('ZADD', P .. 'alive', 'LT', steady + ttl_of(id), id)
  end
end

-- If no session sent a heartbeat for its whole ttl, the store was away, not the workers: each session gets one more ttl, once.
local function spare_after_outage()
  local state = call('HMGET', P .. 'meta', 'pulse', 'least_ttl')
  local pulse, least = tonumber(state[1]), tonumber(state[2]) or 0
  if not pulse then
    return
  end
  if pulse > steady then -- the clock of the server was set back
    note_heartbeat()
    limit_sessions_to_ttl()
  elseif steady - pulse > least then
    for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
      local ttl = ttl_of(id)
      if steady - pulse > ttl and call('HSETNX', session_key(id), 'spared', 1) == 1 then
        extend(id, ttl)
      end
    end
  end
end

-- === part kill_session =====================================================================================
-- Ends a session. Its schedules are handed over first: if that fails, the session still lives, and the caller repeats the call.
local function kill_session(id)
  drop_declarations(id)
  local number = tonumber(call('HGET', session_key(id), 'number'))
  number = number and number >= 0 and number or 0 -- NaN included
  call('HSET', session_key(id), 'dead_at', wall, 'beat_at', tonumber(is_alive(id) or steady) - ttl_of(id))
  call('ZREM', P .. 'alive', id)
  call('SREM', P .. 'end_subscribers', id)
  call('ZADD', P .. 'dead', number, id)
end

-- === part leases ===========================================================================================
local function request_of(tail)
  return (struct.unpack('>I6', tail))
end

-- Returns the session's leases as {tail, job's id} in the order of their claims: the first `most` of those that `is_wanted` admits (both
-- may be nil). Reads their jobs.
local function leases_of(session, most, is_wanted)
  local stored, leases = call('HGETALL', P .. 'leases:' .. session), {}
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

-- Returns the job of a lease, or false if the job does not have this lease; then the lease is removed.
local function leased(session, tail, id)
  local job = load(id)
  if job and job[F.status] == S.RUNNING and job[F.claim] == session .. tail then
    return job
  end
  call('HDEL', P .. 'leases:' .. session, tail)
  call('SREM', P .. 'stopping:' .. session, tail)
  recount() -- the end of a lease removes it, so the index and the job disagree
  return false
end

-- === part end_dead_leases ==================================================================================
-- Ends the first leases of a dead session, up to a limit: as hand-backs if it was spared, otherwise as crashes. Returns how many.
local function end_dead_leases(session, most, is_spared, cause, fingerprint)
  local ended = 0
  for _, lease in ipairs(leases_of(session, most)) do
    local job = leased(session, lease[1], lease[2])
    if job then
      if is_spared then
        hand_back(lease[2], job, true)
      else
        crash(lease[2], job, cause, fingerprint)
      end
      ended = ended + 1
    end
  end
  return ended
end

-- === script register =======================================================================================
-- Registers a session. Arguments: id, name, ttl (microseconds), queues and concurrency, whether it wants the ends of jobs. Reply: "OK", or
-- "LOST" if it is dead.

local id, name, ttl, about = given[1], given[2], given[3], given[4]
spare_after_outage()
if call('EXISTS', session_key(id)) == 0 then
  local number = call('HINCRBY', P .. 'meta', 'sessions', 1)
  call('HSET', session_key(id), 'name', name, 'ttl', ttl, 'about', about, 'registered_at', wall, 'number', number, 'request', 0)
  extend(id, ttl)
  if given[5] then
    call('SADD', P .. 'end_subscribers', id)
  end
  local least = tonumber(call('HGET', P .. 'meta', 'least_ttl') or ttl)
  call('HSET', P .. 'meta', 'least_ttl', math.min(least, ttl))
elseif is_alive(id) then
  call('HSET', session_key(id), 'about', about)
else
  return redis.status_reply('LOST')
end
note_heartbeat()
return redis.status_reply('OK')

-- === script beat ===========================================================================================
-- Takes the heartbeat of a session.
--
-- arguments  session, its claims (8 bytes each, one string), the highest request it has seen, reports {claim, microseconds since the run
--            began, progress}, whether it is leaving, the cause of its death or false, whether it asks for the outlook,
--            the fingerprint of poison of that cause
-- reply      "LOST", or {the number of ghosts, claims that are lost, claims that are asked to stop (8 bytes each)}; with the outlook also
--            whether jobs are ready, and microseconds until upkeep has something to do, or -1

local session, named, seen, reports, leaving, died_of = given[1], given[2], given[3], given[4], given[5], given[6]
local key = P .. 'leases:' .. session
local MOST_AT_ONCE = 500

local function take_reports()
  local ids = {}
  for i, report in ipairs(reports) do
    ids[i] = call('HGET', key, report[1])
  end
  local known = {}
  for i = 1, #reports do
    known[#known + 1] = ids[i] or nil
  end
  prefetch(known)
  for i, report in ipairs(reports) do
    local id = ids[i]
    local job = id and leased(session, report[1], id)
    if job then
      set(job, F.started_at, wall - report[2])
      if report[3] then
        set(job, F.progress, report[3])
      end
      save(id, job)
    end
  end
end

-- Returns the claims of the heartbeat as a set, those that are not leases of the session, and the number of those that are.
local function check_named()
  local tails, is_named, lost, found = {}, {}, {}, 0
  for first = 1, #named, 8 do
    local tail = string.sub(named, first, first + 7)
    if not is_named[tail] then
      is_named[tail] = true
      tails[#tails + 1] = tail
    end
  end
  for first = 1, #tails, MOST do
    local last = math.min(first + MOST - 1, #tails)
    for i, id in ipairs(call('HMGET', key, unpack(tails, first, last))) do
      if id then
        found = found + 1
      else
        lost[#lost + 1] = tails[first + i - 1]
      end
    end
  end
  return is_named, lost, found
end

-- Returns ghosts to their queue: leases that the heartbeat does not name, and that are old enough.
local function take_back_ghosts(is_named)
  local ghosts = 0
  local unnamed = leases_of(session, nil, function(tail)
    return not is_named[tail] and request_of(tail) <= seen
  end)
  for _, lease in ipairs(unnamed) do
    local job = leased(session, lease[1], lease[2])
    if job and steady - job[F.claimed_steady] >= R.ghost_after then
      requeue(lease[2], job, E.GHOST)
      ghosts = ghosts + 1
    end
  end
  return ghosts
end

-- Upkeep ends the leases beyond MOST_AT_ONCE: as hand-backs if the session is spared, otherwise as crashes of this cause.
local function leave()
  kill_session(session)
  if died_of then
    call('HSET', session_key(session), 'died_of', died_of, 'fingerprint', given[8])
  elseif call('HLEN', key) > MOST_AT_ONCE then
    call('HSET', session_key(session), 'spared', 1)
  end
  end_dead_leases(session, MOST_AT_ONCE, not died_of, died_of, given[8])
  flush()
end

spare_after_outage()
if not is_alive(session) then
  return redis.status_reply('LOST')
end
extend(session, ttl_of(session))
call('HDEL', session_key(session), 'spared')
note_heartbeat()
if died_of then
  leave()
  return { 0, '', '' }
end
take_reports()
local is_named, lost, found = check_named()
local ghosts = 0
if call('HLEN', key) > found then
  ghosts = take_back_ghosts(is_named)
end
if leaving then
  leave()
  return { ghosts, named, '' }
end
flush()
local stopping = {}
for _, tail in ipairs(call('SMEMBERS', P .. 'stopping:' .. session)) do
  if is_named[tail] then
    stopping[#stopping + 1] = tail
  end
end
local reply = { ghosts, table.concat(lost), table.concat(stopping) }
if given[7] then
  check_counts()
  check_indexes_in_turn()
  pass_on_late_nudges()
  reply[4], reply[5] = call('EXISTS', P .. 'ready'), due_in()
  if call('EXISTS', P .. 'ends') == 1 and call('SISMEMBER', P .. 'end_subscribers', session) == 1 then
    reply[5] = 0
  end
end
return reply

-- === script workers ========================================================================================
-- Returns the living sessions, and dead ones that still have leases. Reply, as msgpack, for each: id, name, ttl, queues and concurrency,
-- time of registration, microseconds since its last heartbeat, leases, whether it is dead.

local rows = {}
local function add_row(id, is_dead)
  local about = call('HMGET', session_key(id), 'name', 'about', 'registered_at', 'beat_at')
  local leases = call('HLEN', P .. 'leases:' .. id)
  if not is_dead or leases > 0 then
    local ttl = ttl_of(id)
    local silent = steady - (is_dead and tonumber(about[4]) or steady)
    if not is_dead then
      silent = steady - (tonumber(is_alive(id)) - ttl)
    end
    rows[#rows + 1] = { id, sub(about[1] or '', 1, 1000), ttl, sub(about[2] or '', 1, 1048576), tonumber(about[3]) or false, math.max(0, silent), leases, is_dead }
  end
end

for _, id in ipairs(call('ZRANGE', P .. 'alive', 0, -1)) do
  add_row(id, false)
end
for _, id in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
  add_row(id, true)
end
return cmsgpack.pack(rows)
