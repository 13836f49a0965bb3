-- A session's sign of life.
--
-- arguments  session, the claims that it holds (8 bytes each, one string), the highest request seen, reports
--            {claim, microseconds since the run began, progress}, whether it is leaving, what it has died of or false, whether it looks
-- reply      "LOST", or {how many ghosts, the claims that are lost, those that are asked to stop; 8 bytes each}, and to who looks also
--            whether there is something ready, and microseconds until upkeep might have something to move, or -1

local session, named, seen, reports, leaving, died_of = given[1], given[2], given[3], given[4], given[5], given[6]
local key = P .. 'l:' .. session
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
      set(job, F.started, wall - report[2])
      if report[3] then
        set(job, F.progress, report[3])
      end
      save(id, job)
    end
  end
end

-- The claims named, as a set, and those of them that are not its leases.
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

-- Leases old enough that it does not name go back to their place.
local function take_back_ghosts(is_named)
  local ghosts = 0
  local unnamed = leases_of(session, nil, function(tail)
    return not is_named[tail] and request_of(tail) <= seen
  end)
  for _, lease in ipairs(unnamed) do
    local job = leased(session, lease[1], lease[2])
    if job and steady - job[F.claimed_steady] >= R.ghost_after then
      let_go(job)
      wait_again(lease[2], job, E.GHOST)
      ghosts = ghosts + 1
    end
  end
  return ghosts
end

local function leave()
  kill(session)
  if call('HLEN', key) > MOST_AT_ONCE then -- the rest is upkeep's, which hands back what a spared session had
    call('HSET', session_key(session), 'spared', 1)
  end
  for _, lease in ipairs(leases_of(session, MOST_AT_ONCE)) do
    local job = leased(session, lease[1], lease[2])
    if job then
      let_go(job)
      hand_back(lease[2], job, true)
    end
  end
end

local function die()
  kill(session)
  call('HSET', session_key(session), 'died_of', died_of) -- what it has beyond MOST_AT_ONCE is upkeep's, which is to know it too
  for _, lease in ipairs(leases_of(session, MOST_AT_ONCE)) do
    local job = leased(session, lease[1], lease[2])
    if job then
      let_go(job)
      crash(lease[2], job, died_of)
    end
  end
end

spare_after_outage()
if not is_alive(session) then
  return redis.status_reply('LOST')
end
revive(session, ttl_of(session))
call('HDEL', session_key(session), 'spared')
take_pulse()
if died_of then
  die()
  flush()
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
  flush()
  return { ghosts, named, '' }
end
flush()
local stopping = {}
for _, tail in ipairs(call('SMEMBERS', P .. 'x:' .. session)) do
  if is_named[tail] then
    stopping[#stopping + 1] = tail
  end
end
local reply = { ghosts, table.concat(lost), table.concat(stopping) }
if given[7] then
  miss_counts()
  find_what_is_lost_in_turn()
  reply[4], reply[5] = call('EXISTS', P .. 'ready'), due_in()
end
return reply
