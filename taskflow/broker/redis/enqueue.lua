-- Adds jobs: plain ones (enqueue), any (add), and whether they are there (known).

-- === script enqueue ========================================================================================

-- Adds plain calls: with nothing but an id, a queue, a job, a priority, a payload and extras, ready at once. Refused by the server when
-- it is out of memory: see the flags in scripts.py.
--
-- arguments  texts of the queues and jobs; ids of those whose payload is kept apart; and then for each run of calls that are alike but for the rest an array: the places of its
--            queue and job among the texts, priority, and for each call its id, and its extras and payload as the fixed layout has them;
--            at least one and at most MOST calls in all
-- reply      nil when all were added; "KNOWN", and nothing is: some id is there already, or twice among them (see add.lua); "LACKING",
--            and nothing is: a payload that was sent ahead is not there

local texts, apart = given[1], given[2]
local intern, is_lacking, keep_bodies
if #apart > 0 then
  intern, is_lacking, keep_bodies = the_rest()
  if is_lacking(apart) then
    return redis.status_reply('LACKING')
  end
end
-- As text, where they are known: numbers go into keys, and Lua takes longer to write one than to send a command.
local numbers = call('HMGET', P .. 'names', unpack(texts))
for i = 1, #texts do
  local number = numbers[i]
  if not number then
    numbers = the_rest()(texts)
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
if seq < 0 or seq > 281474976700000 then -- nobody has added so many
  error('WRONGTYPE the number of arrivals has been lost')
end
local values, is_named, places, key, value = {}, {}, {}, P .. 'j:', 0

-- The layout is that of fields.py.
for r = 3, #given do
  local run = given[r]
  local queue, priority = numbers[run[1]], run[3]
  local name = queue .. ':' .. priority
  local place = places[name]
  if not place then
    place = { queue = queue, called = sub(texts[run[1]], 3), priority = priority, entries = {} }
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
    local stands = struct.pack('>I8I6', wall, seq)
    values[value - 1], values[value] = key .. id, kind .. stands .. now .. run[i + 1]
    entries[entry] = stands .. id
  end
end
if call('MSETNX', unpack(values)) == 0 then
  return redis.status_reply('KNOWN')
end
if #apart > 0 then
  keep_bodies(apart)
end
for name, place in pairs(places) do
  local queue, priority, entries = place.queue, place.priority, place.entries
  append(P .. 'r:' .. name, P .. 'z:' .. name, entries)
  call('ZADD', P .. 'p:' .. queue, -priority, priority)
  if change(queue, S.READY, #entries) == #entries then
    show_ready(place.called)
  end
  call('HINCRBY', P .. 'totals', queue .. ':' .. E.ENQUEUE, #entries)
  rung['queue:' .. place.called] = true
  rung['queues'] = true
end
tell_armed()
return nil

-- === part enqueue_rest =====================================================================================

-- What an enqueue does for queues and jobs that are new.

return intern, is_lacking, keep_bodies

-- === part add_all ==========================================================================================

-- Adds one call. An item: id, queue, job (as numbers), priority, after, at, expires (microseconds or false), key, on_conflict,
-- payload, extras, awaits, joins.
-- The answer: "" for added, "r" and the id that gave way, "i" for an id that is known, "k" and the id that has the key.
local function add(item, seq)
  local id, key = item[1], item[8]
  if load(id) then
    return 'i'
  end
  local waiting, running
  if key then
    waiting, running = holders(key)
    local standing = waiting or running and not load(running)[F.cancel_requested] and running
    if standing and item[9] == 0 then
      return 'k' .. standing
    end
    if waiting then
      finish(waiting, load(waiting), E.REPLACE, S.CANCELLED, string.format(W.REPLACED_BY, id_text(id)))
    end
  end
  local due = wall + item[5]
  if item[6] then
    due = math.max(wall, item[6])
  end
  local job = { false, item[2], item[3], item[4], seq, wall, due > wall and due or false, item[10] }
  if item[11] then
    set(job, F.extras, item[11])
  end
  if item[7] then
    set(job, F.expires, wall + item[7])
  end
  local awaits = item[12]
  if running then
    awaits = awaits + 1
    set(job, F.behind, running)
    set(job, F.waiting_for, string.format(W.WAITS_BEHIND, id_text(running)))
  end
  if awaits > 0 then
    set(job, F.awaits, awaits)
  end
  if item[13] then
    set(job, F.joins, item[13])
  end
  if key then
    set(job, F.key, key)
    call('HSET', P .. 'k', key, (call('HGET', P .. 'k', key) or '') .. id)
  end
  enter(id, job, E.ENQUEUE)
  return waiting and 'r' .. waiting or ''
end

-- Adds all. Arguments: the texts of their queues and jobs, the items that name them by place. The answers, or nil
-- when every item was simply added.
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
    answers[i] = add(item, seq + i)
    were_all_added = were_all_added and answers[i] == ''
  end
  return not were_all_added and answers or nil
end

-- === script add ============================================================================================

-- Adds calls of any kind, in order, as one step. Refused by the server when it is out of memory: see the flags in scripts.py.
--
-- arguments  texts, items (see adding.lua), ids of those whose payload is kept apart
-- reply      nil when all were added, else an answer for each item (see adding.lua); or "LACKING", and none is added: a payload that was
--            sent ahead is not there

if is_lacking(given[3]) then
  return redis.status_reply('LACKING')
end
local answers = add_all(given[1], given[2])
-- Of one that was not added nobody wants it; of one that is known, and has ended, neither.
local kept, strays = {}, {}
for _, id in ipairs(given[3]) do
  local job = load(id)
  local group = job and size_apart(job[F.payload]) and kept or strays
  group[#group + 1] = id
end
keep_bodies(kept)
flush()
drop_bodies(strays)
return answers

-- === script known ==========================================================================================

-- Whether ids are known, ended or not, after a call that was refused for want of memory: what was sent ahead of it, and belongs to no job,
-- is taken away, or it would be in the way of all that comes until it fades. Arguments: ids. The reply: how many of them are known.

prefetch(given[1])
local known, strays = 0, {}
for _, id in ipairs(given[1]) do
  local job = load(id)
  known = known + (job and 1 or 0)
  if not (job and size_apart(job[F.payload])) then
    strays[#strays + 1] = id
  end
end
drop_bodies(strays)
return known
