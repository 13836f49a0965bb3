-- Builds all indexes again from the jobs.

-- === script reindex ========================================================================================
-- Builds all indexes again from the jobs, and moves keys of a wrong type to bad:. It runs only after a script has found such a key: it
-- looks at every job at once, and holds the server for about ten seconds per million jobs.
--
-- arguments  milliseconds for which it does not run again: other callers have found the same key meanwhile
-- reply      the number of keys moved; nil if it has just run

local ZSETS = {
  ready = 1, due = 1, expiring = 1, fade = 1, crowded = 1, alive = 1, dead = 1, waiting = 1, nudged = 1, upkeepers = 1, schedules = 1,
  tag = 1, priorities = 1, returned = 1, kept = 1, held = 1, failures = 1, failure_cells = 1, acts = 1,
}
local HASHES = {
  names = 1, texts = 1, meta = 1, counts = 1, totals = 1, keys = 1, spoilt = 1, session = 1, leases = 1, awaited = 1, schedule = 1,
}
local SETS = { paused = 1, stopping = 1, declares = 1, end_subscribers = 1 }
local LISTS = { ready_list = 1, ends = 1 }
local INDEXES = {
  ready_list = 1, returned = 1, priorities = 1, kept = 1, leases = 1, stopping = 1, due = 1, expiring = 1, fade = 1, held = 1,
  ready = 1, crowded = 1, keys = 1, counts = 1, schedules = 1, declares = 1, tag = 1, failures = 1, failure_cells = 1,
}

-- Kinds of keys that are named by references in these fields.
local APART = { b = F.payload, o = F.result }

local function expected(kind)
  return (kind == 'j' or APART[kind]) and 'string' or ZSETS[kind] and 'zset' or HASHES[kind] and 'hash' or SETS[kind] and 'set'
    or LISTS[kind] and 'list'
end

local function all_keys()
  local found, seen, cursor = {}, {}, '0'
  repeat
    local page = call('SCAN', cursor, 'MATCH', P .. '*', 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      if not seen[key] then
        seen[key] = true
        found[#found + 1] = key
      end
    end
  until cursor == '0'
  return found
end

-- --- keys ---------------------------------------------------------------------------------------------

-- Moves wrong keys, deletes all indexes. Returns the ids of all jobs, the number of keys moved, the names of keys of payloads and results,
-- and the names of all schedules.
local function clear()
  local ids, aside, apart, names = {}, 0, {}, {}
  for _, key in ipairs(all_keys()) do
    local name = string.sub(key, #P + 1)
    local kind = string.match(name, '^[%l_]+')
    local is_bad = string.sub(name, 1, 4) == 'bad:'
    local wanted = not is_bad and expected(kind)
    if kind == 'j' and #name == 18 then -- of any type: see prefetch
      ids[#ids + 1] = string.sub(name, 3)
    elseif wanted and call('TYPE', key).ok ~= wanted then
      aside = aside + 1
      call('RENAME', key, P .. 'bad:' .. string.format('%.0f', wall) .. ':' .. aside .. ':' .. name)
    elseif APART[kind] and #name == 18 then
      apart[#apart + 1] = name
    elseif wanted and kind == 'schedule' then
      names[#names + 1] = string.sub(name, 10)
    elseif not is_bad and INDEXES[kind] then
      call('UNLINK', key)
    end
  end
  return ids, aside, apart, names
end

-- Lets payloads and results that belong to no job expire. They are not deleted at once: a payload's call may be on its way.
local function expire_orphans(apart)
  for _, name in ipairs(apart) do
    local job = load(string.sub(name, 3))
    local is_named = job and (job[F.spoilt] or size_apart(job[APART[string.sub(name, 1, 1)]]))
    if not is_named and call('PTTL', P .. name) == -1 then
      call('PEXPIRE', P .. name, R.repeat_for / 1000)
    end
  end
end

-- Deletes fields of a hash whose values should be numbers but are not.
local function drop_non_numbers(name)
  local stored = call('HGETALL', P .. name)
  for i = 1, #stored, 2 do
    local number = tonumber(stored[i + 1])
    if not (number and number >= 0 and number <= MOST_ELSEWHERE and number % 1 == 0) then
      call('HDEL', P .. name, stored[i])
    end
  end
end

-- Restores `names` and `texts` from each other. Returns a map from extra numbers of a text to its own: jobs get its own.
local function repair_names()
  for _, name in ipairs({ 'names', 'meta', 'totals' }) do
    drop_non_numbers(name)
  end
  local numbers, texts, highest = {}, {}, tonumber(call('HGET', P .. 'meta', 'names')) or 0
  local stored = call('HGETALL', P .. 'names')
  for i = 1, #stored, 2 do
    numbers[stored[i]] = is_text(stored[i]) and tonumber(stored[i + 1]) or nil
  end
  stored = call('HGETALL', P .. 'texts')
  for i = 1, #stored, 2 do
    local number = tonumber(stored[i])
    if number and number <= MOST_OF[F.queue] and is_text(stored[i + 1]) then
      texts[number] = stored[i + 1]
    end
  end
  local own, is_taken, instead = {}, {}, {}
  local function give(text, number)
    if not own[text] and not is_taken[number] then
      own[text], is_taken[number] = number, true
    end
  end
  local function alias(text, number)
    if own[text] and own[text] ~= number and not is_taken[number] then
      instead[number] = own[text]
    end
  end
  for text, number in pairs(numbers) do -- both agree
    if texts[number] == text then
      give(text, number)
    end
  end
  for number, text in pairs(texts) do -- `names` has another number
    if numbers[text] then
      give(text, number)
    end
  end
  for text, number in pairs(numbers) do -- `texts` has lost or altered it
    if not own[texts[number] or ''] then
      give(text, number)
    end
  end
  for number, text in pairs(texts) do -- `names` has lost it
    give(text, number)
  end
  for text, number in pairs(numbers) do
    alias(text, number)
  end
  for number, text in pairs(texts) do
    alias(text, number)
  end
  call('DEL', P .. 'names', P .. 'texts')
  for text, number in pairs(own) do
    call('HSET', P .. 'names', text, number)
    call('HSET', P .. 'texts', number, text)
    highest = math.max(highest, number)
  end
  call('HSET', P .. 'meta', 'names', highest <= MOST_OF[F.queue] and highest or 0)
  return instead
end

-- --- sessions -----------------------------------------------------------------------------------------

-- Adds a session that is neither alive nor dead to the dead ones. Upkeep then releases its leases as crashed.
local function add_dead_session(session, name)
  if not is_alive(session) and not call('ZSCORE', P .. 'dead', session) then
    local number = call('HINCRBY', P .. 'meta', 'sessions', 1)
    call('HSET', session_key(session), 'name', name or '?', 'ttl', 0, 'about', cmsgpack.pack({ {}, 0, {}, '' }), 'registered_at', wall,
      'number', number, 'request', 0)
    kill_session(session)
  end
end

local function index_lease(id, job)
  local session, tail = string.sub(job[F.claim], 1, 16), string.sub(job[F.claim], 17)
  add_dead_session(session, job[F.worker])
  call('HSET', P .. 'leases:' .. session, tail, id)
  if job[F.cancel_requested] then
    call('SADD', P .. 'stopping:' .. session, tail)
  end
end

-- --- jobs ---------------------------------------------------------------------------------------------

local function index_job(id, job)
  local status = job[F.status]
  if status == S.BURIED then
    add_scored(fading, job[F.ended_at] + R.repeat_for, id)
    return
  end
  count(job[F.queue], status, 1)
  index_tags(id, job)
  if job[F.expires_at] and is_waiting(job) then
    call('ZADD', P .. 'expiring', job[F.expires_at], id)
  end
  if job[F.key] and not has_ended(job) then
    call('HSET', P .. 'keys', job[F.key], (call('HGET', P .. 'keys', job[F.key]) or '') .. id)
  end
  if status == S.READY then
    add_to(ready, job[F.queue], job[F.priority], entry_of(due_of(job), job[F.seq], id))
  elseif status == S.SCHEDULED then
    add_scored(scheduled, job[F.due_at], due_member(id, job))
  elseif status == S.HELD then
    call('ZADD', P .. 'held', job[F.seq], id)
  elseif status == S.RUNNING then
    index_lease(id, job)
  else
    if status == S.FAILED then
      join_group(id, job)
    end
    add_scored(fading, job[F.fade_at], id)
    call('ZADD', kept_key(job[F.queue], status == S.FAILED and 1 or 0), job[F.ended_at], kept_member(id, job))
  end
end

-- Upkeep looks at each schedule again: without its jitter, and once more if it has no next instant.
local function index_schedules(names)
  local schedules = schedule_functions()
  call('HDEL', P .. 'meta', 'schedules')
  for _, name in ipairs(names) do
    local schedule = schedules.find(name)
    schedules.set_check_at(schedule, schedule.next_at or wall)
    if schedule.declared then
      schedule.youngest = nil
      schedules.elect(schedule)
    end
    for _, declared in ipairs((schedules.read_all(schedule))) do
      call('SADD', P .. 'declares:' .. declared.session, name)
    end
  end
  schedules.save()
end

local function sort_all(groups)
  for _, of_queue in pairs(groups) do
    for _, entries in pairs(of_queue) do
      table.sort(entries, is_before)
    end
  end
end

-- Set in the same step: a caller that is cut off in between would keep all others from reindexing.
local reindexing, spared, began = P .. 'reindexing', given[1], os.clock()
if call('PTTL', reindexing) >= 0 then
  pcall(recount) -- the caller may have failed half-way since then: the next upkeep reindexes again
  return false
end
call('SET', reindexing, 1, 'PX', spared)

local ids, aside, apart, names = clear()
local instead = repair_names()
prefetch(ids)
local jobs, seq = {}, tonumber(call('HGET', P .. 'meta', 'seq')) or 0
seq = seq < MOST_OF[F.seq] and seq or 0
for _, id in ipairs(ids) do
  local job = load(id)
  if job then
    local queue, name = instead[job[F.queue]], instead[job[F.name]]
    if queue or name then
      job[F.queue], job[F.name] = queue or job[F.queue], name or job[F.name]
      save(id, job)
    end
    if not stand_ins[id] and job[F.status] ~= S.BURIED and not is_queue(job[F.queue]) then
      job = stand_in(id, { F.queue, 'no queue has this number', false, false }, tostring(job[F.queue]), job)
    end
    if stand_ins[id] then
      replace_record(id, job)
      ended_ids[#ended_ids + 1] = id
      aside = aside + 1
    end
    jobs[#jobs + 1] = id
    seq = math.max(seq, job[F.seq])
  end
end
expire_orphans(apart)
call('HSET', P .. 'meta', 'seq', seq)
call('HSET', P .. 'counts', 'whole', 1)
table.sort(jobs, function(one, other)
  return load(one)[F.seq] < load(other)[F.seq]
end)
for _, id in ipairs(jobs) do
  index_job(id, load(id))
end
sort_all(ready)
flush()
index_schedules(names)
-- The server's clock does not move during a script.
local took = math.ceil(1000 * (os.clock() - began))
call('PEXPIRE', reindexing, spared + took)
call('SET', P .. 'reindexed', 1, 'PX', 20 * took)
return aside
