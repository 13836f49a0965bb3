-- Schedules. Workers read their definitions; scripts compare and move their times.
--
-- schedule:NAME is a hash: the fields in STATE; a body:DIGEST for each definition that is in force or declared; a by:SESSION for each session
-- that declares the schedule: the time from which its age counts (8 bytes) and the digest of its definition.

-- === part schedule =========================================================================================
-- Fields of a schedule; true for a whole number. An absent one is empty. `digest` is the one in force.
local STATE = { digest = false, declared = false, paused = false, asleep_since = true, next_at = true, last_at = true, fired_at = true,
  last_id = false, fired = true, skipped = true, missed = true }

-- The schedules of this call by name.
local schedules = {}

local function whole(stored)
  local number = tonumber(stored)
  return number and number >= 0 and number <= 2 ^ 62 and number % 1 == 0 and number or nil
end

-- Returns the schedule, or false. A field that cannot be read is absent.
local function schedule_of(name)
  if schedules[name] == nil then
    local stored = call('HGETALL', P .. 'schedule:' .. name)
    local schedule = { name = name, bodies = {}, declared_by = {} }
    for i = 1, #stored, 2 do
      local field, value = stored[i], stored[i + 1]
      if sub(field, 1, 5) == 'body:' then
        schedule.bodies[sub(field, 6)] = value
      elseif sub(field, 1, 3) == 'by:' and #value > 8 then
        schedule.declared_by[sub(field, 4)] = { since = struct.unpack('>I8', value), digest = sub(value, 9) }
      elseif STATE[field] then
        schedule[field] = whole(value)
      elseif STATE[field] == false and value ~= '' then
        schedule[field] = value
      end
    end
    schedules[name] = #stored > 0 and schedule
  end
  return schedules[name]
end

-- Sets when upkeep looks at the schedule next; nil for never. One that sleeps is looked at to remove it.
local function look(schedule, at)
  if schedule.asleep_since then
    at = schedule.asleep_since + R.keep_asleep
  elseif schedule.paused then
    at = nil
  end
  schedule.look_at = at or '+inf'
end

-- Has the next instant computed anew, unless it has passed and is still to be fired.
local function bring_into_force(schedule, digest)
  if schedule.digest ~= digest then
    schedule.digest = digest
    if not schedule.next_at or schedule.next_at > wall then
      schedule.next_at = nil
      look(schedule, wall)
    end
  end
end

-- Brings the definition of the youngest living session into force. If no session declares the schedule, it sleeps.
local function elect(schedule)
  local session, youngest
  for other, declared in pairs(schedule.declared_by) do
    if not is_alive(other) then
      call('HDEL', P .. 'schedule:' .. schedule.name, 'by:' .. other)
      schedule.declared_by[other] = nil
    elseif not youngest or declared.since > youngest.since or declared.since == youngest.since and other > session then
      session, youngest = other, declared
    end
  end
  if not youngest then
    schedule.asleep_since = schedule.asleep_since or wall
    look(schedule)
    return
  end
  if schedule.asleep_since then
    schedule.asleep_since = nil
    look(schedule, wall)
  end
  bring_into_force(schedule, youngest.digest)
end

local function remove_schedule(name)
  schedules[name] = false
  call('DEL', P .. 'schedule:' .. name)
  call('HINCRBY', P .. 'meta', 'schedules', 0 - call('ZREM', P .. 'looks', name))
end

-- Writes the state of one schedule, and deletes the bodies that it no longer needs.
local function save_schedule(schedule)
  local key, values, is_used = P .. 'schedule:' .. schedule.name, {}, { [schedule.digest or ''] = true }
  for field in pairs(STATE) do
    values[#values + 1] = field
    values[#values + 1] = schedule[field] or ''
  end
  call('HSET', key, unpack(values))
  for _, declared in pairs(schedule.declared_by) do
    is_used[declared.digest] = true
  end
  for digest in pairs(schedule.bodies) do
    if not is_used[digest] then
      call('HDEL', key, 'body:' .. digest)
    end
  end
  if schedule.look_at then
    call('HINCRBY', P .. 'meta', 'schedules', call('ZADD', P .. 'looks', schedule.look_at, schedule.name))
  end
end

-- Writes the schedules of this call. If one of them is now the first to be looked at, some listeners that wait for the next due time hear
-- of it.
local function save_schedules()
  for _, schedule in pairs(schedules) do
    if schedule then
      save_schedule(schedule)
    end
  end
  local first = schedules[call('ZRANGE', P .. 'looks', 0, 0)[1] or '']
  if first and first.look_at and first.look_at ~= '+inf' then
    nudge_upkeepers()
  end
  schedules = {}
end

-- Ends what a session declares, when it dies.
local function end_declarations(session)
  local names = call('SMEMBERS', P .. 'd:' .. session)
  for _, name in ipairs(names) do
    local schedule = schedule_of(name)
    if schedule and schedule.declared_by[session] then
      call('HDEL', P .. 'schedule:' .. name, 'by:' .. session)
      schedule.declared_by[session] = nil
      elect(schedule)
    end
  end
  if #names > 0 then
    save_schedules()
    call('DEL', P .. 'd:' .. session)
  end
end

-- === script define =========================================================================================
-- Stores definitions. Arguments: the session that declares them, or false; its age in microseconds; for each definition its name, digest
-- and body. Reply: "LOST", or for each whether it was stored.

local session, since, answers = given[1], math.max(0, wall - given[2]), {}
if session and not is_alive(session) then
  return redis.status_reply('LOST')
end
for i, definition in ipairs(given[3]) do
  local name, digest, body = unpack(definition)
  local schedule = schedule_of(name) or { name = name, bodies = {}, declared_by = {}, declared = session and 1 }
  if not schedule.declared == not session then
    schedules[name] = schedule
    schedule.bodies[digest] = body
    call('HSET', P .. 'schedule:' .. name, 'body:' .. digest, body)
    if session then
      schedule.declared_by[session] = { since = since, digest = digest }
      call('HSET', P .. 'schedule:' .. name, 'by:' .. session, struct.pack('>I8', since) .. digest)
      call('SADD', P .. 'd:' .. session, name)
      elect(schedule)
    else
      bring_into_force(schedule, digest)
    end
    answers[i] = 1
  else
    answers[i] = 0
  end
end
save_schedules()
return answers

-- === part offers ===========================================================================================
local HOUR = 3600000000

-- Returns name, digest, body, next instant or false, ... of the schedules that are due, and leaves each of them to the caller for a while.
-- Removes those that have slept for long.
local function offers()
  local offered = {}
  for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'looks', '-inf', wall, 'LIMIT', 0, R.max_offers)) do
    local schedule = schedule_of(name)
    if not schedule or schedule.asleep_since and schedule.asleep_since + R.keep_asleep <= wall then
      remove_schedule(name)
    else
      local body = schedule.bodies[schedule.digest or '']
      look(schedule, wall + (body and R.offered_for or HOUR))
      if body and not schedule.asleep_since and not schedule.paused then
        for _, value in ipairs({ name, schedule.digest, body, schedule.next_at or false }) do
          offered[#offered + 1] = value
        end
      end
    end
  end
  save_schedules()
  return offered
end

-- === part fire_all =========================================================================================
-- Moves schedules on and adds their jobs, as one step.
--
-- arguments  the texts of queues and names; for each firing its name, digest, expected, next instant, time of the next look (false for
--            none), number of instants left out, and item (see add_job) or false; the ids of jobs whose payload is stored apart
-- reply      for each firing nil if it has added no job, otherwise an answer (see add_job); "LACKING" if a payload that was sent ahead is
--            gone, and nothing has changed
local function fire_all(texts, firings, apart)
  if is_lacking(apart) then
    return redis.status_reply('LACKING')
  end
  local items, moved, answers = {}, {}, {}
  for i, firing in ipairs(firings) do
    local name, digest, expected, next_at, look_at, missed, item = unpack(firing)
    local schedule = schedule_of(name)
    answers[i] = false
    if schedule and not schedule.paused and schedule.digest == digest and (schedule.next_at or false) == expected then
      if item then
        items[#items + 1] = item
        moved[#items] = { place = i, schedule = schedule }
        schedule.last_at, schedule.fired_at = schedule.next_at, wall
      end
      schedule.missed = (schedule.missed or 0) + missed
      schedule.next_at = next_at or nil
      look(schedule, look_at or nil)
    end
  end
  local added = add_all(texts, items)
  for i, move in ipairs(moved) do
    local answer, schedule = added and added[i] or '', move.schedule
    answers[move.place] = answer
    local kind = sub(answer, 1, 1)
    if kind == 'k' then
      schedule.skipped = (schedule.skipped or 0) + 1
    elseif kind ~= 'i' then
      schedule.fired, schedule.last_id = (schedule.fired or 0) + 1, items[i][1]
    end
  end
  flush_added(apart)
  save_schedules()
  return answers
end

-- === script fire ===========================================================================================
-- Firings of which some add jobs. A server whose memory is full refuses it: see the flags in scripts.py.

return fire_all(given[1], given[2], given[3])

-- === script advance ========================================================================================
-- Firings that add no jobs.

return fire_all(given[1], given[2], given[3])

-- === script schedules ======================================================================================
-- Without an argument, returns the names of all schedules. With names, returns for each that is known its name, digest, body, whether it
-- is declared and paused, the other fields of STATE, and the names of the living sessions that declare it, the youngest first.

if not given[1] then
  return call('ZRANGE', P .. 'looks', 0, -1)
end
local rows = {}

local function declarers(schedule)
  local sessions = {}
  for session in pairs(schedule.declared_by) do
    sessions[#sessions + 1] = is_alive(session) and session or nil
  end
  table.sort(sessions, function(one, other)
    local since, other_since = schedule.declared_by[one].since, schedule.declared_by[other].since
    return since > other_since or since == other_since and one > other
  end)
  for i, session in ipairs(sessions) do
    sessions[i] = call('HGET', session_key(session), 'name')
  end
  return sessions
end

for _, name in ipairs(given[1]) do
  local s = schedule_of(name)
  if s then
    rows[#rows + 1] = { name, s.digest or '', s.bodies[s.digest or ''] or '', s.declared or false, s.paused or false, s.next_at or false,
      s.last_at or false, s.fired_at or false, s.last_id or false, s.fired or 0, s.skipped or 0, s.missed or 0, declarers(s),
      s.asleep_since or false }
  end
end
return rows

-- === script amend ==========================================================================================
-- Pauses, resumes or removes a schedule. Arguments: its name, and what to do. Reply: 1, or 0 if it is unknown or cannot be removed.

local schedule, amendment = schedule_of(given[1]), given[2]
if not schedule or amendment == 'remove' and schedule.declared and not schedule.asleep_since then
  return 0
end
if amendment == 'remove' then
  remove_schedule(given[1])
  return 1
elseif amendment == 'pause' then
  schedule.paused = 1
  look(schedule)
elseif schedule.paused then
  schedule.paused, schedule.next_at = nil, nil
  look(schedule, wall)
end
save_schedules()
return 1
