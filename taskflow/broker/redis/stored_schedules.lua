-- Stored schedules. Scripts only compare and update their times; workers interpret their definitions.
--
-- Fields of the hash schedule:NAME
-- STATE            see below
-- body:DIGEST      a definition that is in force or declared; each is stored once
-- by:SESSION       a session that declares the schedule: the time from which its age counts (8 bytes), the digest of its definition

-- === part schedule =========================================================================================
-- Creates the functions that read and change schedules, only for calls that need them.
local function schedule_functions()
  -- Fields of a schedule; true for a whole number. An absent one is empty. `digest` is the one in force, `youngest` the session that
  -- declares it: all declarations are read only when one of these two changes.
  local STATE = { digest = false, declared = false, paused = false, asleep_since = true, next_at = true, since = true, last_at = true,
    fired_at = true, last_id = false, fired = true, skipped = true, missed = true, youngest = false }
  local FIELDS = {}
  for field in pairs(STATE) do
    FIELDS[#FIELDS + 1] = field
  end

  -- The schedules of this call by name.
  local found = {}

  local function whole(stored)
    local number = tonumber(stored)
    return number and number >= 0 and number <= 2 ^ 62 and number % 1 == 0 and number or nil
  end

  local function make(name)
    found[name] = { name = name, key = P .. 'schedule:' .. name }
    return found[name]
  end

  -- Returns the schedule, or false. A field that cannot be read is absent.
  local function find(name)
    if found[name] == nil then
      local schedule, is_known = make(name), false
      for i, value in ipairs(call('HMGET', schedule.key, unpack(FIELDS))) do
        local field = FIELDS[i]
        is_known = is_known or value
        if value and STATE[field] then
          schedule[field] = whole(value)
        elseif value and value ~= '' and (field ~= 'last_id' or #value == 16) then
          schedule[field] = value
        end
      end
      found[name] = (is_known or call('EXISTS', schedule.key) == 1) and schedule
    end
    return found[name]
  end

  local function declaration(session, value)
    return value and #value > 8 and { session = session, since = struct.unpack('>I8', value), digest = sub(value, 9) }
  end

  local function declared_by(schedule, session)
    return declaration(session, call('HGET', schedule.key, 'by:' .. session))
  end

  -- Reads the declarations of a schedule, and the digests of its bodies.
  local function read_all(schedule)
    local stored, declarations, digests = call('HGETALL', schedule.key), {}, {}
    for i = 1, #stored, 2 do
      local field = stored[i]
      if sub(field, 1, 5) == 'body:' then
        digests[#digests + 1] = sub(field, 6)
      elseif sub(field, 1, 3) == 'by:' then
        declarations[#declarations + 1] = declaration(sub(field, 4), stored[i + 1]) or nil
      end
    end
    return declarations, digests
  end

  local function body_of(schedule)
    return schedule.digest and call('HGET', schedule.key, 'body:' .. schedule.digest)
  end

  -- Sets when upkeep next has to handle the schedule: to offer it or, if it is asleep, to remove it. nil if it need not.
  local function set_check_at(schedule, at)
    if schedule.asleep_since then
      at = schedule.asleep_since + R.keep_asleep
    elseif schedule.paused then
      at = nil
    end
    schedule.check_at = at or '+inf'
  end

  -- If the definition has changed, forgets the next instant, so that a worker computes it again. An instant that is already due is kept:
  -- it must still fire.
  local function bring_into_force(schedule, digest)
    if schedule.digest ~= digest then
      schedule.digest, schedule.has_old_bodies = digest, true
      if not schedule.next_at or schedule.next_at > wall then
        schedule.since = not schedule.next_at and schedule.since or wall
        schedule.next_at = nil
        set_check_at(schedule, wall)
      end
    end
  end

  local function is_younger(one, other)
    return one.since > other.since or one.since == other.since and one.session > other.session
  end

  local function drop_declaration(schedule, declared)
    call('HDEL', schedule.key, 'by:' .. declared.session)
    schedule.has_old_bodies = schedule.has_old_bodies or declared.digest ~= schedule.digest
  end

  local function add_declaration(schedule, session, since, digest, body)
    local old, new = declared_by(schedule, session), { session = session, since = since, digest = digest }
    call('HSET', schedule.key, 'declared', 1, 'body:' .. digest, body, 'by:' .. session, struct.pack('>I8', since) .. digest)
    schedule.declared = 1
    schedule.has_old_bodies = schedule.has_old_bodies or old and old.digest ~= digest
    local youngest = schedule.youngest and declared_by(schedule, schedule.youngest)
    if youngest and (old and youngest.session == session or is_younger(new, youngest)) then
      schedule.youngest = not old and session or nil
    end
  end

  -- Puts the youngest living declaration into force. If there is none, puts the schedule to sleep.
  local function elect(schedule)
    local youngest = schedule.youngest and declared_by(schedule, schedule.youngest)
    if not youngest then
      for _, declared in ipairs((read_all(schedule))) do
        youngest = youngest and is_younger(youngest, declared) and youngest or declared
      end
    end
    schedule.youngest = youngest and youngest.session or nil
    if youngest and not is_alive(youngest.session) then -- it was not killed: `alive` has lost it
      drop_declaration(schedule, youngest)
      return elect(schedule)
    elseif not youngest then
      schedule.asleep_since = schedule.asleep_since or wall
      set_check_at(schedule)
      return
    end
    if schedule.asleep_since then
      schedule.asleep_since = nil
      set_check_at(schedule, wall)
    end
    bring_into_force(schedule, youngest.digest)
  end

  local function remove(name)
    found[name] = false
    call('DEL', P .. 'schedule:' .. name)
    call('HINCRBY', P .. 'meta', 'schedules', 0 - call('ZREM', P .. 'schedules', name))
  end

  -- Writes the state of one schedule, and deletes the bodies that it no longer needs.
  local function save_one(schedule)
    local values = {}
    for _, field in ipairs(FIELDS) do
      values[#values + 1] = field
      values[#values + 1] = schedule[field] or ''
    end
    call('HSET', schedule.key, unpack(values))
    if schedule.has_old_bodies then
      local declarations, digests = read_all(schedule)
      local is_used = { [schedule.digest or ''] = true }
      for _, declared in ipairs(declarations) do
        is_used[declared.digest] = true
      end
      for _, digest in ipairs(digests) do
        if not is_used[digest] then
          call('HDEL', schedule.key, 'body:' .. digest)
        end
      end
    end
    if schedule.check_at then
      call('HINCRBY', P .. 'meta', 'schedules', call('ZADD', P .. 'schedules', schedule.check_at, schedule.name))
    end
  end

  -- Writes the schedules of this call. If one of them is now the first one due, nudges some of the listeners that wait for the next due
  -- time.
  local function save_all()
    for _, schedule in pairs(found) do
      if schedule then
        save_one(schedule)
      end
    end
    local first = found[call('ZRANGE', P .. 'schedules', 0, 0)[1] or '']
    if first and first.check_at and first.check_at ~= '+inf' then
      nudge_upkeepers()
    end
    found = {}
  end

  return { make = make, find = find, set_check_at = set_check_at, bring_into_force = bring_into_force, is_younger = is_younger,
    add_declaration = add_declaration, declared_by = declared_by, read_all = read_all, body_of = body_of,
    drop_declaration = drop_declaration, elect = elect, remove = remove, save = save_all }
end

-- === part drop_declarations ================================================================================
-- Drops the declarations of a session.
local function drop_declarations(session)
  local names = call('SMEMBERS', P .. 'declares:' .. session)
  if #names == 0 then
    return
  end
  local schedules = schedule_functions()
  for _, name in ipairs(names) do
    local schedule = schedules.find(name)
    local declared = schedule and schedules.declared_by(schedule, session)
    if declared then
      schedules.drop_declaration(schedule, declared)
      schedules.elect(schedule)
    end
  end
  schedules.save()
  call('DEL', P .. 'declares:' .. session)
end
