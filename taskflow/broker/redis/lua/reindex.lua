-- Makes all indexes anew from the jobs, which are the truth; keys of a wrong type are put aside under bad:. Run only when a
-- script has come upon one: it looks at every job at once, and holds the server for about ten seconds a million.
--
-- arguments  milliseconds for which it is not done again: others have come upon the same key meanwhile
-- reply      how many keys were put aside; nil when it has been done just now

local ZSETS = { ready = 1, due = 1, exp = 1, fade = 1, crowded = 1, alive = 1, dead = 1, awaited = 1, p = 1, z = 1, y = 1 }
local HASHES = { names = 1, texts = 1, meta = 1, counts = 1, totals = 1, k = 1, bad = 1, s = 1, l = 1 }
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
    if wanted and call('TYPE', key).ok ~= wanted then
      aside = aside + 1
      call('RENAME', key, P .. 'bad:' .. string.format('%.0f', wall) .. ':' .. aside .. ':' .. name)
    elseif kind == 'j' and #name == 18 then
      ids[#ids + 1] = string.sub(name, 3)
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
    if not (job and size_apart(job[F.payload])) and call('HEXISTS', P .. 'bad', id) == 0 and call('PTTL', P .. 'b:' .. id) == -1 then
      call('PEXPIRE', P .. 'b:' .. id, R.repeat_for / 1000)
    end
  end
end

-- Fields of a hash whose values are to be numbers, and are not.
local function drop_what_is_no_number(name)
  local stored = call('HGETALL', P .. name)
  for i = 1, #stored, 2 do
    if not tonumber(stored[i + 1]) then
      call('HDEL', P .. name, stored[i])
    end
  end
end

-- Each of the two tells what the other has lost.
local function mend_names()
  for _, name in ipairs({ 'names', 'meta', 'totals' }) do
    drop_what_is_no_number(name)
  end
  local names, texts = call('HGETALL', P .. 'names'), call('HGETALL', P .. 'texts')
  local highest = tonumber(call('HGET', P .. 'meta', 'names') or 0)
  for i = 1, #names, 2 do
    call('HSET', P .. 'texts', names[i + 1], names[i])
    highest = math.max(highest, tonumber(names[i + 1]))
  end
  for i = 1, #texts, 2 do
    if tonumber(texts[i]) then
      call('HSET', P .. 'names', texts[i + 1], texts[i])
      highest = math.max(highest, tonumber(texts[i]))
    end
  end
  call('HSET', P .. 'meta', 'names', highest)
end

local function is_named(job)
  local known = call('HMGET', P .. 'texts', job[F.queue], job[F.name])
  return known[1] and known[2]
end

-- --- sessions -----------------------------------------------------------------------------------------

-- A session that is neither alive nor dead is dead: its leases are released by upkeep, as of a worker that was lost.
local function bury_session(session, name)
  if not is_alive(session) and not call('ZSCORE', P .. 'dead', session) then
    local number = call('HINCRBY', P .. 'meta', 'sessions', 1)
    call('HSET', session_key(session), 'name', name, 'ttl', 0, 'about', cmsgpack.pack({ {}, 0 }), 'registered_at', wall,
      'number', number, 'request', 0)
    kill(session)
  end
end

local function take_lease(id, job)
  local session, tail = string.sub(job[F.claim], 1, 16), tail_of(job[F.claim])
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
  return false
end
call('SET', mending, 1, 'PX', spared)

local ids, aside, bodies = clear()
mend_names()
prefetch(ids)
local jobs, seq = {}, tonumber(call('HGET', P .. 'meta', 'seq') or 0)
for _, id in ipairs(ids) do
  local job = load(id)
  if job and is_named(job) then
    jobs[#jobs + 1] = id
    seq = math.max(seq, job[F.seq])
  elseif job then
    call('HSET', P .. 'bad', id, cmsgpack.pack(job))
    call('DEL', P .. 'j:' .. id)
    aside = aside + 1
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
call('PEXPIRE', mending, spared + math.ceil(1000 * (os.clock() - began)))
return aside
