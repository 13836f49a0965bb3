-- The verbs of schedules, and the console's. stored_schedules.lua reads and writes the schedules.

-- === script define =========================================================================================
-- Stores definitions. Arguments: the session that declares them, or false; its age in microseconds; for each definition its name, digest
-- and body. Reply: "LOST", or for each 1 if it was stored, 0 if it was refused.

local session, since, schedules, answers = given[1], math.max(0, wall - given[2]), schedule_functions(), {}

local function put(name, digest, body)
  local schedule = schedules.find(name) or schedules.make(name)
  if schedule.declared then
    return 0
  end
  call('HSET', schedule.key, 'body:' .. digest, body)
  schedules.bring_into_force(schedule, digest)
  return 1
end

local function declare(name, digest, body)
  local schedule = schedules.find(name) or schedules.make(name)
  if schedule.digest and not schedule.declared then
    return 0
  end
  call('SADD', P .. 'declares:' .. session, name)
  schedules.add_declaration(schedule, session, since, digest, body)
  schedules.elect(schedule)
  return 1
end

if session and not is_alive(session) then
  return redis.status_reply('LOST')
end
for i, definition in ipairs(given[3]) do
  answers[i] = (session and declare or put)(unpack(definition))
end
schedules.save()
return answers

-- === part offers ===========================================================================================
local HOUR = 3600000000

-- Offers the caller the schedules that are due: returns name, digest, body, next instant or false, time after which to compute that, ...
-- Removes those that have been asleep for too long. Leaves out for an hour those without a definition.
local function offers()
  local schedules, offered, bytes = schedule_functions(), {}, 0
  local due = call('ZRANGEBYSCORE', P .. 'schedules', '-inf', wall, 'LIMIT', 0, R.max_offers)
  for _, name in ipairs(due) do
    if bytes >= R.max_offered_bytes then
      break
    end
    local schedule = schedules.find(name)
    if not schedule or schedule.asleep_since and schedule.asleep_since + R.keep_asleep <= wall then
      schedules.remove(name)
    else
      local body = schedules.body_of(schedule)
      schedules.set_check_at(schedule, wall + (body and R.offered_for or HOUR))
      call('ZADD', P .. 'schedules', schedule.check_at, name)
      if body and not schedule.asleep_since and not schedule.paused then
        bytes = bytes + #body
        for _, value in ipairs({ name, schedule.digest, body, schedule.next_at or false, schedule.since or wall }) do
          offered[#offered + 1] = value
        end
      end
    end
  end
  return offered
end

-- === part fire_all =========================================================================================
-- Advances schedules and adds their jobs, as one step.
--
-- arguments  the texts of queues and names; for each firing its name, digest, expected, next instant, time of the next offer (false for
--            none), number of instants left out, and item (see add_job) or false; the ids of jobs whose payload is stored apart
-- reply      for each firing nil if it has added no job, otherwise an answer (see add_job); "MISSING" if a payload that was sent ahead is
--            gone, and nothing has changed
local function fire_all(texts, firings, apart)
  if has_missing(apart) then
    return redis.status_reply('MISSING')
  end
  local schedules, items, fired, answers = schedule_functions(), {}, {}, {}
  for i, firing in ipairs(firings) do
    local name, digest, expected, next_at, check_at, missed, item = unpack(firing)
    local schedule = schedules.find(name)
    answers[i] = false
    if schedule and not schedule.paused and schedule.digest == digest and (schedule.next_at or false) == expected then
      if item then
        items[#items + 1] = item
        fired[#items] = { place = i, schedule = schedule }
        schedule.last_at, schedule.fired_at = schedule.next_at, wall
      end
      schedule.missed = (schedule.missed or 0) + missed
      schedule.next_at = next_at or nil
      schedule.since = check_at and schedule.since
      schedules.set_check_at(schedule, check_at or nil)
    end
  end
  local added = add_all(texts, items)
  for i, one in ipairs(fired) do
    local answer, schedule = added and added[i] or '', one.schedule
    local kind = sub(answer, 1, 1)
    if kind == 'k' then
      schedule.skipped = (schedule.skipped or 0) + 1
    elseif kind ~= 'i' then
      schedule.fired, schedule.last_id = (schedule.fired or 0) + 1, items[i][1]
    end
    answers[one.place] = answer
  end
  flush_added(apart) -- first: if it fails, the firing is repeated, and its job is known
  schedules.save()
  return answers
end

-- === script fire ===========================================================================================
-- For firings of which some add jobs. A server whose memory is full refuses this script: see the flags in scripts.py.

return fire_all(given[1], given[2], given[3])

-- === script advance ========================================================================================
-- For firings that add no jobs.

return fire_all(given[1], given[2], given[3])

-- === script schedules ======================================================================================
-- Without an argument, returns the names of all schedules. With names, returns for each known one the fields of `ScheduleState` except
-- `look_at` and `since`, then the names of the living sessions that declare it, youngest first.

if not given[1] then
  return call('ZRANGE', P .. 'schedules', 0, -1)
end
local schedules, rows = schedule_functions(), {}

local function declarers(schedule)
  local living = {}
  for _, declared in ipairs((schedules.read_all(schedule))) do
    living[#living + 1] = is_alive(declared.session) and declared or nil
  end
  table.sort(living, schedules.is_younger)
  for i, declared in ipairs(living) do
    living[i] = call('HGET', session_key(declared.session), 'name')
  end
  return living
end

for _, name in ipairs(given[1]) do
  local one = schedules.find(name)
  if one then
    rows[#rows + 1] = {
      name, one.digest or '', schedules.body_of(one) or '', one.declared or false, one.paused or false, one.next_at or false,
      one.last_at or false, one.fired_at or false, one.last_id or false, one.fired or 0, one.skipped or 0, one.missed or 0,
      one.asleep_since or false, declarers(one),
    }
  end
end
return rows

-- === script amend_schedule =================================================================================
-- Pauses, resumes or removes a schedule. Arguments: its name, and a value of `Amendment`. Reply: 1, or 0 if it is unknown or cannot be
-- removed.

local schedules, name, amendment = schedule_functions(), given[1], given[2]
local schedule = schedules.find(name)
if not schedule or amendment == 'remove' and schedule.declared and not schedule.asleep_since then
  return 0
end
if amendment == 'remove' then
  schedules.remove(name)
elseif amendment == 'pause' then
  schedule.paused = 1
  schedules.set_check_at(schedule)
elseif schedule.paused then
  schedule.paused, schedule.next_at, schedule.since = nil, nil, wall
  schedules.set_check_at(schedule, wall)
end
schedules.save()
return 1
