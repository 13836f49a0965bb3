-- === part compare_records ==================================================================================
-- Compares records with indexes and counts: see examination.py. Each call compares some records, or some entries of one index.

local repairs, of = given[1], given[2]
local found = {}

-- Counts a difference, and corrects it with the given command if `repairs` is true.
local function differs(name, ...)
  found[name] = (found[name] or 0) + 1
  if repairs then
    call(...)
  end
end

local function in_turn(numbers)
  local values_in_turn = {}
  for name, number in pairs(numbers) do
    values_in_turn[#values_in_turn + 1] = name
    values_in_turn[#values_in_turn + 1] = number
  end
  return values_in_turn
end

local function reply(...)
  return { in_turn(found), ... }
end

-- Compares the lists and hashes that contain a READY job, or a lease.
local function compare_by_hand(id, header)
  local session, queue, priority = header[F.session], header[F.queue], header[F.priority]
  if header[F.status] == F.ready_status then
    local place, entry = priority .. ':' .. queue, header[F.due_at] .. header[F.seq] .. id
    local length = call('LLEN', P .. 'list:' .. place)
    local rank = rank_of(P .. 'list:' .. place, entry, length)
    if not (rank < length and call('LINDEX', P .. 'list:' .. place, rank) == entry or call('ZSCORE', P .. 'back:' .. place, entry)) then
      differs('ready', 'ZADD', P .. 'back:' .. place, 0, entry)
    end
    if not call('ZSCORE', P .. 'priorities:' .. queue, priority) then
      differs('ready', 'ZADD', P .. 'priorities:' .. queue, -priority, priority)
    end
  elseif header[F.status] == F.running_status then
    if call('HGET', P .. 'leases:' .. session, header[F.claim]) ~= id then
      differs('leases', 'HSET', P .. 'leases:' .. session, header[F.claim], id)
    end
    if not call('ZSCORE', P .. 'lessees', session) then
      differs('leases', 'ZADD', P .. 'lessees', 0, session)
    end
  end
end

-- Arguments: kinds and ids, alternating. Reply: the number of records that cannot be read; names and numbers of counts, alternating.
local function compare_records(refs)
  local keys, counted, unreadable = {}, {}, 0
  for i = 1, #refs, 2 do
    keys[#keys + 1] = P .. PREFIXES[refs[i] + 1] .. refs[i + 1]
  end
  for i, stored in ipairs(get_all(keys)) do
    local kind, id = refs[2 * i - 1], refs[2 * i]
    local header = stored and touch(kind, id, stored).header
    local status, queue
    local members = header and PLACES[kind + 1](header, id) or {}
    for k = 1, #members, 2 do
      if call('ZSCORE', P .. 'i:' .. members[k], members[k + 1]) ~= '0' then
        differs(members[k], 'ZADD', P .. 'i:' .. members[k], 0, members[k + 1])
      end
    end
    if stored and not header then
      unreadable = unreadable + 1
    end
    if header and kind == K.JOB then
      status, queue = header[F.status], header[F.queue]
      compare_by_hand(id, header)
    elseif stored and kind == K.JOB then
      status, queue = counted_as(stored)
    end
    if status and queue and status < F.buried_status then
      counted[status .. queue] = (counted[status .. queue] or 0) + 1
    end
  end
  return reply(unreadable, in_turn(counted))
end

-- Arguments: an index or a place, the kind of its records, where an id begins in a member, the rank of the first member, and the number of
-- members. Reply: the rank of the next member, or nil. Entries of records that cannot be read are kept.
local function compare_members(name, kind, id_at, rank, most)
  local key, keys, ids, kept = P .. (of == 'place' and 'back:' or 'i:') .. name, {}, {}, 0
  local members = call('ZRANGE', key, rank, rank + most - 1)
  for i, member in ipairs(members) do
    ids[i] = sub(member, id_at ~= 0 and id_at or (string.find(member, '\0\1', 1, true) or 0) + 2)
    keys[i] = P .. PREFIXES[kind + 1] .. ids[i]
  end
  for i, stored in ipairs(get_all(keys)) do
    local header = stored and touch(kind, ids[i], stored).header
    local is_right = stored and (not header or of == 'place' and is_entry_of(stored, members[i], name))
    local places = header and of == 'index' and PLACES[kind + 1](header, ids[i]) or {}
    for k = 1, #places, 2 do
      is_right = is_right or places[k] == name and places[k + 1] == members[i]
    end
    if not is_right then
      differs(of == 'place' and 'ready' or name, 'ZREM', key, members[i])
    end
    kept = kept + ((is_right or not repairs) and 1 or 0)
  end
  return reply(#members == most and rank + kept)
end

local function compare_leases(session)
  local key = P .. 'leases:' .. session
  local leases = call('HGETALL', key)
  for i = 1, #leases, 2 do
    local stored = get_all({ P .. 'j:' .. leases[i + 1] })[1]
    local header = stored and touch(K.JOB, leases[i + 1], stored).header
    if not stored or header and not (header[F.status] == F.running_status and header[F.session] == session and header[F.claim] == leases[i]) then
      differs('leases', 'HDEL', key, leases[i])
    end
  end
  return reply()
end

-- Arguments: the counts of jobs, and the total number of events before these were counted. Reply: the total now. If it has changed, jobs
-- have moved, and nothing is compared.
local function compare_counts(counted, before)
  local numbers, queues, moves_now, stored = {}, {}, 0, call('HGETALL', P .. 'totals')
  for i = 2, #stored, 2 do
    moves_now = moves_now + (tonumber(stored[i]) or 0)
  end
  if moves_now ~= before then
    return reply(moves_now)
  end
  for i = 1, #counted, 2 do
    numbers[counted[i]], queues[sub(counted[i], 2)] = counted[i + 1], true
  end
  stored = call('HGETALL', P .. 'counts')
  for i = 1, #stored, 2 do
    queues[sub(stored[i], 2)] = true
  end
  for queue in pairs(queues) do
    local function number(status)
      return numbers[status .. queue] or 0
    end
    for status = F.held_status, F.cancelled_status do
      if tonumber(call('HGET', P .. 'counts', status .. queue) or 0) ~= number(status) then
        differs('counts', 'HSET', P .. 'counts', status .. queue, number(status))
      end
    end
    local kept = { ['kept:0'] = number(F.succeeded_status) + number(F.cancelled_status), ['kept:1'] = number(F.failed_status) }
    for key, ended in pairs(kept) do
      if tonumber(call('ZSCORE', P .. key, queue) or 0) ~= ended then
        differs('counts', 'ZADD', P .. key, ended, queue)
      end
    end
    if number(F.ready_status) > 0 and call('EXISTS', P .. 'q:' .. queue) == 0 and not call('ZSCORE', P .. 'ready', queue) then
      differs('ready', 'ZADD', P .. 'ready', 0, queue)
    end
  end
  return reply(moves_now)
end

-- === script compare ========================================================================================
-- Arguments: whether to correct differences, what to compare, and the arguments of that comparison.
local comparisons = { records = compare_records, index = compare_members, place = compare_members, leases = compare_leases, counts = compare_counts }
return comparisons[of](unpack(given, 3))
