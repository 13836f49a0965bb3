-- Scripts that add jobs: `enqueue` plain ones, `add` any. `known` looks for the jobs of a call that was refused.

-- === script enqueue ========================================================================================
-- Adds plain jobs: ready at once, with an id, a queue, a name, a priority, a payload and extras only. A server whose memory is full
-- refuses it: see the flags in scripts.py.
--
-- arguments  the texts of queues and names; the ids of jobs whose payload is stored apart; for each run of jobs of the same kind an
--            array: the places of its queue and name among the texts, the priority, and for each job its id, and its extras and payload
--            in the fixed layout; 1 to MOST jobs in all
-- reply      nil if all were added. Otherwise none was added: "KNOWN" if an id is already stored or occurs twice (use `add`), "MISSING"
--            if a payload that was sent ahead is gone

local texts, apart = given[1], given[2]
local intern, has_missing, keep_payloads
if #apart > 0 then
  intern, has_missing, keep_payloads = load_rest()
  if has_missing(apart) then
    return redis.status_reply('MISSING')
  end
end
-- Numbers stay text, as in keys: formatting a number in Lua takes longer than sending a command.
local numbers = call('HMGET', P .. 'names', unpack(texts))
for i = 1, #texts do
  local number = numbers[i]
  if not number then
    numbers = load_rest()(texts)
    break
  elseif #number > 10 or string.find(number, '%D') then
    error('WRONGTYPE a name has no number')
  end
end
local calls = 0
for r = 3, #given do
  calls = calls + (#given[r] - 3) / 2
end
local seq = call('HINCRBY', P .. 'meta', 'seq', calls) - calls
if seq < 0 or seq > 281474976700000 then -- larger than that of any real store
  error('WRONGTYPE the number of arrivals has been lost')
end
local values, is_named, places, key, value = {}, {}, {}, P .. 'j:', 0
local readied, lists = {}, { P .. 'waiting:' }

-- The fixed layout of fields.py.
for r = 3, #given do
  local run = given[r]
  local queue, priority = numbers[run[1]], run[3]
  local name = queue .. ':' .. priority
  local place = places[name]
  if not place then
    place = { queue = queue, queue_name = sub(texts[run[1]], 3), priority = priority, entries = {} }
    places[name] = place
  end
  local entries = place.entries
  local entry = #entries
  local kind = struct.pack('>BbI4I4', S.READY, priority, queue, numbers[run[2]])
  local now = struct.pack('>I8', wall)
  for i = 4, #run, 2 do
    local id = run[i]
    if is_named[id] then
      return redis.status_reply('KNOWN')
    end
    is_named[id] = true
    seq, value, entry = seq + 1, value + 2, entry + 1
    local position = struct.pack('>I8I6', wall, seq)
    values[value - 1], values[value] = key .. id, kind .. position .. now .. run[i + 1]
    entries[entry] = position .. id
  end
end
if call('MSETNX', unpack(values)) == 0 then
  return redis.status_reply('KNOWN')
end
if #apart > 0 then
  keep_payloads(apart)
end
for name, place in pairs(places) do
  local queue, priority, entries = place.queue, place.priority, place.entries
  append(P .. 'ready_list:' .. name, P .. 'returned:' .. name, entries)
  call('ZADD', P .. 'priorities:' .. queue, -priority, priority)
  if change(queue, S.READY, #entries) == #entries then
    show_ready(place.queue_name)
  end
  call('HINCRBY', P .. 'totals', queue .. ':' .. E.ENQUEUE, #entries)
  readied[place.queue_name] = (readied[place.queue_name] or 0) + #entries
  lists[#lists + 1] = P .. 'waiting:' .. place.queue_name
end
if call('EXISTS', unpack(lists)) > 0 then
  local _, _, _, nudge_for = load_rest()
  nudge_for(readied)
end
return nil

-- === part enqueue_rest =====================================================================================
-- For new queues and names, and payloads that are stored apart.

return intern, has_missing, keep_payloads, nudge_for

-- === part add_all ==========================================================================================
-- Adds one job. An item: id, queue, name (as numbers), after, at, expires (microseconds or false), on_conflict, payload, extras, joins, and
-- the fields that are stored as they were sent (F.as_sent). Returns "" if it was added, "r" and the id that it replaced, "i" if the id is
-- known, "k" and the id that holds the key.
local function add_job(item, seq)
  local id = item[1]
  if load(id) then
    return 'i'
  end
  local due = wall + item[4]
  if item[5] then
    due = math.max(wall, item[5])
  end
  local job = { false, item[2], item[3], 0, seq, wall, due > wall and due or false, item[8] }
  if item[9] then
    set(job, F.extras, item[9])
  end
  if item[6] then
    set(job, F.expires_at, wall + item[6])
  end
  if item[10] then
    set(job, F.joins, item[10])
  end
  for i, field in ipairs({ F.as_sent }) do
    local value = item[10 + i]
    if value and value ~= 0 then
      set(job, field, value)
    end
  end
  local waiting, running
  local key = job[F.key]
  if key then
    waiting, running = holders(key)
    local holder = waiting or running and not load(running)[F.cancel_requested] and running
    if holder and item[7] == 0 then
      return 'k' .. holder
    end
    if waiting then
      finish(waiting, load(waiting), E.REPLACE, S.CANCELLED, string.format(W.REPLACED_BY, id_text(id)))
    end
    if running then
      set(job, F.awaits, (job[F.awaits] or 0) + 1)
      set(job, F.behind, running)
      set(job, F.waiting_for, string.format(W.WAITS_BEHIND, id_text(running)))
    end
    call('HSET', P .. 'keys', key, (call('HGET', P .. 'keys', key) or '') .. id)
  end
  index_tags(id, job)
  enter(id, job, E.ENQUEUE)
  return waiting and 'r' .. waiting or ''
end

-- Adds items. They name queues and jobs by their places in `texts`. Returns nil if all were added and none replaced another, else an
-- answer for each.
local function add_all(texts, items)
  if #items == 0 then
    return nil
  end
  local numbers = intern(texts)
  local ids, answers, were_all_added = {}, {}, true
  for i, item in ipairs(items) do
    ids[i] = item[1]
  end
  prefetch(ids)
  local seq = call('HINCRBY', P .. 'meta', 'seq', #items) - #items
  if seq < 0 or seq > 281474976700000 then
    error('WRONGTYPE the number of arrivals has been lost')
  end
  for i, item in ipairs(items) do
    item[2], item[3] = numbers[item[2]], numbers[item[3]]
    answers[i] = add_job(item, seq + i)
    were_all_added = were_all_added and answers[i] == ''
  end
  return not were_all_added and answers or nil
end

-- Writes the jobs that were added. The payload of a job that was not added, or that is known and has ended, is deleted.
local function flush_added(apart)
  local kept, orphans = {}, {}
  for _, id in ipairs(apart) do
    local job = load(id)
    local group = job and size_apart(job[F.payload]) and kept or orphans
    group[#group + 1] = id
  end
  keep_payloads(kept)
  flush()
  unlink_all('b:', orphans)
end

-- === script add ============================================================================================
-- Adds jobs of any kind, in order, as one step. A server whose memory is full refuses it: see the flags in scripts.py.
--
-- arguments  texts, items (see add_job), the ids of jobs whose payload is stored apart
-- reply      nil if all were added, else an answer for each item (see add_job); "MISSING" if a payload that was sent ahead is gone, and
--            none was added

if has_missing(given[3]) then
  return redis.status_reply('MISSING')
end
local answers = add_all(given[1], given[2])
flush_added(given[3])
return answers

-- === script known ==========================================================================================
-- Counts the ids that are known, ended or not, after an enqueue that a full server refused. Deletes payloads that were sent ahead and
-- belong to no job: they would take memory until they expire. Arguments: ids. Reply: how many are known.

prefetch(given[1])
local known, orphans = 0, {}
for _, id in ipairs(given[1]) do
  local job = load(id)
  known = known + (job and 1 or 0)
  if not (job and size_apart(job[F.payload])) then
    orphans[#orphans + 1] = id
  end
end
unlink_all('b:', orphans)
return known
