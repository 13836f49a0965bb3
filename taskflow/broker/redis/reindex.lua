-- Indexes that have lost jobs: how they are found, and made anew.

-- === part lost_indexes =====================================================================================

-- As a wrong type it makes the caller have all indexes made anew (broker.py).
local function complain(of_what)
  error('WRONGTYPE ' .. of_what)
end

-- counts has the field "whole" from the first name on: where it has lost that, it has lost more. A store that has just been mended is left
-- alone for a while, however many of its keys others take away.
local function miss_counts()
  if call('HEXISTS', P .. 'counts', 'whole') == 0 and call('EXISTS', P .. 'names') == 1 and call('PTTL', P .. 'mended') < 0 then
    complain('the counts of jobs have been lost')
  end
end

local function each_count(stored, see)
  for i = 1, #stored, 2 do
    local queue, status = string.match(stored[i], '^(%d+):(%d+)$')
    local number = tonumber(stored[i + 1])
    if queue and number and number > 0 then
      see(queue, tonumber(status), number)
    end
  end
end

-- Where the whole index is gone although jobs are ready, workers of every queue would not find them.
local function find_lost_queues()
  if call('EXISTS', P .. 'ready') == 1 then
    return
  end
  each_count(call('HGETALL', P .. 'counts'), function(queue, status, number)
    if status == S.READY then
      index_ready(queue, number, number)
    end
  end)
end

local function length_of_ready(queue)
  local length = 0
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    length = length + call('LLEN', list) + call('ZCARD', returned)
  end
  return length
end

-- Fields of a hash that one call looks at: a few milliseconds.
local IN_TURN = 500

-- The next fields and values of a hash, and whether these were the last.
local function next_of(hash)
  local page = call('HSCAN', P .. hash, call('HGET', P .. 'meta', 'next_of_' .. hash) or 0, 'COUNT', IN_TURN)
  call('HSET', P .. 'meta', 'next_of_' .. hash, page[1])
  return page[2], page[1] == '0'
end

-- An index that holds fewer jobs than are counted has lost some: nobody would come upon these.
local function check_scheduled_and_running()
  local scheduled, running, leases = 0, 0, 0
  each_count(call('HGETALL', P .. 'counts'), function(_, status, number)
    scheduled = scheduled + (status == S.SCHEDULED and number or 0)
    running = running + (status == S.RUNNING and number or 0)
  end)
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      leases = leases + call('HLEN', P .. 'l:' .. session)
    end
  end
  if call('ZCARD', P .. 'due') < scheduled or leases < running then
    complain('scheduled or running jobs stand nowhere')
  end
end

local function check_indexes()
  local counts, is_last = next_of('counts')
  each_count(counts, function(queue, status, number)
    if status == S.READY and length_of_ready(queue) < number then
      complain('ready jobs stand nowhere')
    end
  end)
  if is_last then
    check_scheduled_and_running()
  end
end

local function check_names()
  local names, numbers = next_of('names'), {}
  for i = 2, #names, 2 do
    numbers[#numbers + 1] = names[i]
  end
  for i, text in ipairs(get_all('texts', numbers)) do
    if text ~= names[2 * i - 1] or not is_text(text) then
      complain('a name has another number than its text')
    end
  end
  if call('HLEN', P .. 'names') ~= call('HLEN', P .. 'texts') then
    complain('a number has no text')
  end
end

-- Who looks need not all do so.
local function find_what_is_lost_in_turn()
  local since = steady - (tonumber(call('HGET', P .. 'meta', 'sought_at')) or 0)
  if since < 0 or since > 5000000 then
    find_lost_queues()
    no_session_lives_longer()
    if call('PTTL', P .. 'mended') < 0 and call('EXISTS', P .. 'spoilt') == 0 then -- else the next call sees whether it is in order
      call('HSET', P .. 'meta', 'sought_at', steady)
      check_names()
      check_indexes()
    end
  end
end

-- === script reindex ========================================================================================

-- Makes all indexes anew from the jobs, which are the truth; keys of a wrong type are put aside under bad:. Run only when a
-- script has come upon one: it looks at every job at once, and holds the server for about ten seconds a million.
--
-- arguments  milliseconds for which it is not done again: others have come upon the same key meanwhile
-- reply      how many keys were put aside; nil when it has been done just now

local ZSETS = { ready = 1, due = 1, exp = 1, fade = 1, crowded = 1, alive = 1, dead = 1, awaited = 1, p = 1, z = 1, y = 1 }
local HASHES = { names = 1, texts = 1, meta = 1, counts = 1, totals = 1, k = 1, spoilt = 1, s = 1, l = 1 }
local SETS = { armed = 1, held = 1, paused = 1, x = 1 }
local LISTS = { r = 1 }
local MADE_ANEW = { r = 1, z = 1, p = 1, y = 1, l = 1, x = 1, due = 1, exp = 1, fade = 1, held = 1, ready = 1, crowded = 1, k = 1, counts = 1 }

local function expected(kind)
  return (kind == 'j' or kind == 'b') and 'string' or ZSETS[kind] and 'zset' or HASHES[kind] and 'hash' or SETS[kind] and 'set' or LISTS[kind] and 'list'
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

-- The ids of all jobs, once wrong keys are aside and what is made anew is gone; how many were put aside; the ids of payloads apart.
local function clear()
  local ids, aside, bodies = {}, 0, {}
  for _, key in ipairs(all_keys()) do
    local name = string.sub(key, #P + 1)
    local kind = string.match(name, '^(%l+)')
    local is_bad = string.sub(name, 1, 4) == 'bad:'
    local wanted = not is_bad and expected(kind)
    if kind == 'j' and #name == 18 then -- of whatever type: see prefetch
      ids[#ids + 1] = string.sub(name, 3)
    elseif wanted and call('TYPE', key).ok ~= wanted then
      aside = aside + 1
      call('RENAME', key, P .. 'bad:' .. string.format('%.0f', wall) .. ':' .. aside .. ':' .. name)
    elseif kind == 'b' and #name == 18 then
      bodies[#bodies + 1] = string.sub(name, 3)
    elseif not is_bad and MADE_ANEW[kind] then
      call('UNLINK', key)
    end
  end
  return ids, aside, bodies
end

-- What no job names any more goes, but not at once: a call may be on its way.
local function let_strays_fade(bodies)
  for _, id in ipairs(bodies) do
    local job = load(id)
    if not (job and size_apart(job[F.payload])) and not (job and job[F.spoilt]) and call('PTTL', P .. 'b:' .. id) == -1 then
      call('PEXPIRE', P .. 'b:' .. id, R.repeat_for / 1000)
    end
  end
end

-- Fields of a hash whose values are to be numbers, and are not.
local function drop_what_is_no_number(name)
  local stored = call('HGETALL', P .. name)
  for i = 1, #stored, 2 do
    local number = tonumber(stored[i + 1])
    if not (number and number >= 0 and number <= MOST_ELSEWHERE and number % 1 == 0) then
      call('HDEL', P .. name, stored[i])
    end
  end
end

-- Each of the two tells what the other has lost. Numbers that stood for a text beside its own: the jobs that have them are given its own.
local function mend_names()
  for _, name in ipairs({ 'names', 'meta', 'totals' }) do
    drop_what_is_no_number(name)
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
  for text, number in pairs(numbers) do -- those that agree
    if texts[number] == text then
      give(text, number)
    end
  end
  for number, text in pairs(texts) do -- a name that has another number
    if numbers[text] then
      give(text, number)
    end
  end
  for text, number in pairs(numbers) do -- a text that is lost or altered
    if not own[texts[number] or ''] then
      give(text, number)
    end
  end
  for number, text in pairs(texts) do -- a name that is lost
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

-- A session that is neither alive nor dead is dead: its leases are released by upkeep, as of a worker that was lost.
local function bury_session(session, name)
  if not is_alive(session) and not call('ZSCORE', P .. 'dead', session) then
    local number = call('HINCRBY', P .. 'meta', 'sessions', 1)
    call('HSET', session_key(session), 'name', name or '?', 'ttl', 0, 'about', cmsgpack.pack({ {}, 0 }), 'registered_at', wall,
      'number', number, 'request', 0)
    kill(session)
  end
end

local function take_lease(id, job)
  local session, tail = string.sub(job[F.claim], 1, 16), string.sub(job[F.claim], 17)
  bury_session(session, job[F.worker])
  call('HSET', P .. 'l:' .. session, tail, id)
  if job[F.cancel_requested] then
    call('SADD', P .. 'x:' .. session, tail)
  end
end

-- --- jobs ---------------------------------------------------------------------------------------------

local function take_up(id, job)
  local status = job[F.status]
  if status == S.GONE then
    fading[#fading + 1] = job[F.ended] + R.repeat_for
    fading[#fading + 1] = id
    return
  end
  count(job[F.queue], status, 1)
  if job[F.expires] and is_waiting(job) then
    call('ZADD', P .. 'exp', job[F.expires], id)
  end
  if job[F.key] and not has_ended(job) then
    call('HSET', P .. 'k', job[F.key], (call('HGET', P .. 'k', job[F.key]) or '') .. id)
  end
  if status == S.READY then
    add_to(ready, job[F.queue], job[F.priority], entry_of(due_of(job), job[F.seq], id))
  elseif status == S.SCHEDULED then
    scheduled[#scheduled + 1] = job[F.due]
    scheduled[#scheduled + 1] = due_member(id, job)
  elseif status == S.HELD then
    call('SADD', P .. 'held', id)
  elseif status == S.RUNNING then
    take_lease(id, job)
  else
    fading[#fading + 1] = job[F.keep_until]
    fading[#fading + 1] = id
    call('ZADD', kept_key(job[F.queue], status == S.FAILED and 1 or 0), job[F.ended], kept_member(id, job))
  end
end

local function sort_all(groups)
  for _, of_queue in pairs(groups) do
    for _, entries in pairs(of_queue) do
      table.sort(entries, is_before)
    end
  end
end

-- In one step with the rest, or whoever is cut off between the two would keep all others from it.
local mending, spared, began = P .. 'mending', given[1], os.clock()
if call('PTTL', mending) >= 0 then
  pcall(recount) -- the caller may have failed half way after it was done: the next upkeep does it once more
  return false
end
call('SET', mending, 1, 'PX', spared)

local ids, aside, bodies = clear()
local instead = mend_names()
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
    if not stand_ins[id] and job[F.status] ~= S.GONE and not is_queue(job[F.queue]) then
      job = stand_in(id, { F.queue, 'no queue has this number', false, false }, tostring(job[F.queue]), job)
    end
    if stand_ins[id] then
      replace_record(id, job)
      rung_jobs[#rung_jobs + 1] = id
      aside = aside + 1
    end
    jobs[#jobs + 1] = id
    seq = math.max(seq, job[F.seq])
  end
end
let_strays_fade(bodies)
call('HSET', P .. 'meta', 'seq', seq)
call('HSET', P .. 'counts', 'whole', 1)
table.sort(jobs, function(one, other)
  return load(one)[F.seq] < load(other)[F.seq]
end)
for _, id in ipairs(jobs) do
  take_up(id, load(id))
end
sort_all(ready)
flush()
-- For the server the time has stood still meanwhile.
local took = math.ceil(1000 * (os.clock() - began))
call('PEXPIRE', mending, spared + took)
call('SET', P .. 'mended', 1, 'PX', 20 * took)
return aside
