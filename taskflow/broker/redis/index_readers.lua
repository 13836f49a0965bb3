-- Reads the entries of an index in order, for the pages of the console.

-- === part index_readers ====================================================================================
-- A reader returns the next entries of an index, at most `number`; none if there are no more. An entry has the job's id and its place, see
-- paging.py. `after` is the place of an entry that was read before, which may be gone; nil to begin with the first one.

-- Compares bytes, because Lua compares strings by the locale of the server.
local function is_less(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = byte(one, i), byte(other, i)
    if a ~= b then
      return a < b
    end
  end
  return #one < #other
end

-- Returns the first position from `first` up to `past` for which `is_behind` is true, or `past`. The positions before it have false.
local function first_behind(first, past, is_behind)
  while first < past do
    local middle = math.floor((first + past) / 2)
    if is_behind(middle) then
      past = middle
    else
      first = middle + 1
    end
  end
  return first
end

-- Returns how many entries of a sorted set have a lower score than the place, or the same score and a lower number of arrival, with
-- `or_equal` also an equal one. Entries of one score are sorted by the number of arrival, with which they begin.
local function rank_of(set, score, seq, or_equal)
  local text = string.format('%.0f', score)
  local lower = call('ZCOUNT', set, '-inf', '(' .. text)
  return first_behind(lower, lower + call('ZCOUNT', set, text, text), function(rank)
    local found = struct.unpack('>I6', call('ZRANGE', set, rank, rank)[1])
    return found > seq or (found == seq and not or_equal)
  end)
end

local function read_held(after)
  local rank = after and call('ZCOUNT', P .. 'held', '-inf', string.format('%.0f', after[1])) or 0
  return function(number)
    local entries, stored = {}, call('ZRANGE', P .. 'held', rank, rank + number - 1, 'WITHSCORES')
    rank = rank + number
    for i = 1, #stored, 2 do
      entries[#entries + 1] = { stored[i], { tonumber(stored[i + 1]) } }
    end
    return entries
  end
end

local function read_scheduled(after)
  local rank = after and rank_of(P .. 'due', after[1], after[2], true) or 0
  return function(number)
    local entries, stored = {}, call('ZRANGE', P .. 'due', rank, rank + number - 1, 'WITHSCORES')
    rank = rank + number
    for i = 1, #stored, 2 do
      entries[#entries + 1] = { sub(stored[i], 11), { tonumber(stored[i + 1]), (struct.unpack('>I6', stored[i])) } }
    end
    return entries
  end
end

-- Returns the queues, or only one, that have jobs with this status: the name and number of each, sorted by name.
local function queues_with(status, only)
  local queues, fields = {}, {}
  local stored = only and { 'q:' .. only, call('HGET', P .. 'names', 'q:' .. only) } or call('HGETALL', P .. 'names')
  for i = 1, #stored, 2 do
    if sub(stored[i], 1, 2) == 'q:' and tonumber(stored[i + 1]) then
      queues[#queues + 1] = { sub(stored[i], 3), stored[i + 1] }
      fields[#fields + 1] = stored[i + 1] .. ':' .. status
    end
  end
  local counts, used = #fields > 0 and get_all('counts', fields) or {}, {}
  for i, queue in ipairs(queues) do
    if (tonumber(counts[i]) or 0) > 0 then
      used[#used + 1] = queue
    end
  end
  table.sort(used, function(one, other)
    return is_less(one[1], other[1])
  end)
  return used
end

-- Reads the ready jobs of one priority, in the list and in the set. A job that was cancelled and retried may have an entry in both.
local function read_priority(name, queue, priority, time, seq)
  local list, returned = ready_keys(queue .. ':' .. priority)
  local begin, at, last = '-', 0, nil
  if time then
    local place = struct.pack('>I8I6', time, seq)
    begin = '(' .. place .. string.rep('\255', 17)
    at = first_behind(0, call('LLEN', list), function(position)
      return is_before(place, call('LINDEX', list, position))
    end)
  end
  return function(number)
    local one = call('LRANGE', list, at, at + number - 1)
    local other = call('ZRANGE', returned, begin, '+', 'BYLEX', 'LIMIT', 0, number)
    local entries, i, k = {}, 1, 1
    while #entries < number and (one[i] or other[k]) do
      local entry
      if one[i] and (not other[k] or is_before(one[i], other[k])) then
        entry, i, at = one[i], i + 1, at + 1
      else
        entry, k, begin = other[k], k + 1, '(' .. other[k]
      end
      if entry ~= last then
        local entry_time, entry_seq = struct.unpack('>I8I6', entry)
        entries[#entries + 1] = { sub(entry, 15), { name, tonumber(priority), entry_time, entry_seq } }
      end
      last = entry
    end
    return entries
  end
end

local function read_ready(after, only)
  local queues, first, priorities, reader = queues_with(S.READY, only), 1, nil, nil
  while after and queues[first] and is_less(queues[first][1], after[1]) do
    first = first + 1
  end
  return function(number)
    while queues[first] do
      local name, queue = unpack(queues[first])
      priorities = priorities or call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)
      local begins_here = after and after[1] == name
      while begins_here and priorities[1] and tonumber(priorities[1]) > after[2] do
        table.remove(priorities, 1)
      end
      while priorities[1] do
        local is_place = begins_here and tonumber(priorities[1]) == after[2]
        reader = reader or read_priority(name, queue, priorities[1], is_place and after[3], is_place and after[4])
        local entries = reader(number)
        if #entries > 0 then
          return entries
        end
        table.remove(priorities, 1)
        reader = nil
      end
      first, priorities = first + 1, nil
    end
    return {}
  end
end

local function read_running(after)
  local sessions = {}
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      if not after or not is_less(session, after[1]) then
        sessions[#sessions + 1] = session
      end
    end
  end
  table.sort(sessions, is_less)
  local session, fields, claims, at = nil, {}, {}, 1 -- the claims of a session, in order, and the position of the next one
  -- Sorts numbers instead of pairs, which takes a tenth of the time. They are exact for the first 2^37 requests of a session.
  local function read_claims()
    fields, claims, at = {}, {}, 1
    for _, field in ipairs(call('HKEYS', P .. 'leases:' .. session)) do
      local request, number = struct.unpack('>I6I2', field)
      if not after or session ~= after[1] or request > after[2] or (request == after[2] and number > after[3]) then
        local claim = request * 65536 + number
        claims[#claims + 1] = claim
        fields[claim] = field
      end
    end
    table.sort(claims)
  end
  return function(number)
    while at > #claims and #sessions > 0 do
      session = table.remove(sessions, 1)
      read_claims()
    end
    local entries, wanted = {}, {}
    for i = at, math.min(at + number - 1, #claims) do
      wanted[#wanted + 1] = fields[claims[i]]
    end
    at = at + #wanted
    for i, id in ipairs(#wanted > 0 and call('HMGET', P .. 'leases:' .. session, unpack(wanted)) or {}) do
      local request, place = struct.unpack('>I6I2', wanted[i])
      entries[i] = { id, { session, request, place } }
    end
    return entries
  end
end

-- Reads the jobs of one queue that have ended, the newest first.
local function read_ended_of(queue, failed, after)
  local set = P .. 'kept:' .. queue .. ':' .. failed
  local rank = after and rank_of(set, after[1], after[2], false) or call('ZCARD', set) -- of the entry that was read last
  return function(number)
    local entries = {}
    if rank > 0 then
      local stored = call('ZRANGE', set, math.max(0, rank - number), rank - 1, 'WITHSCORES')
      rank = math.max(0, rank - number)
      for i = #stored - 1, 1, -2 do
        entries[#entries + 1] = { sub(stored[i], 7), { tonumber(stored[i + 1]), (struct.unpack('>I6', stored[i])) } }
      end
    end
    return entries
  end
end

-- Merges the queues. Each is read in portions.
local function read_ended(after, only, status)
  local queues = {}
  for _, queue in ipairs(queues_with(status, only)) do
    local reader = read_ended_of(queue[2], status == S.FAILED and 1 or 0, after)
    queues[#queues + 1] = { reader = reader, entries = {}, at = 1, portion = 8 }
  end
  local function head(queue)
    if queue.at > #queue.entries then
      queue.entries, queue.at = queue.reader(queue.portion), 1
      queue.portion = math.min(2 * queue.portion, 256)
    end
    return queue.entries[queue.at]
  end
  local function newest()
    local best, of_best
    for i = #queues, 1, -1 do
      local entry = head(queues[i])
      if not entry then
        table.remove(queues, i)
      elseif not best or entry[2][1] > best[2][1] or (entry[2][1] == best[2][1] and entry[2][2] > best[2][2]) then
        best, of_best = entry, queues[i]
      end
    end
    if best then
      of_best.at = of_best.at + 1
    end
    return best
  end
  return function(number)
    local entries = {}
    while #entries < number do
      local entry = newest()
      if not entry then
        break
      end
      entries[#entries + 1] = entry
    end
    return entries
  end
end

local function read_tag(after, tag)
  local before = after and '(' .. after[1] or '+'
  return function(number)
    local entries, ids = {}, call('ZRANGE', P .. 'tag:' .. tag, before, '-', 'BYLEX', 'REV', 'LIMIT', 0, number)
    for _, id in ipairs(ids) do
      entries[#entries + 1] = { id, { id } }
      before = '(' .. id
    end
    return entries
  end
end

-- Returns the reader of the index of a status or, with a tag, of its jobs. `queue` is the name of a queue, or false.
local function reader_of(status, tag, after, queue)
  if tag then
    return read_tag(after, tag)
  elseif status == S.HELD then
    return read_held(after)
  elseif status == S.SCHEDULED then
    return read_scheduled(after)
  elseif status == S.READY then
    return read_ready(after, queue)
  elseif status == S.RUNNING then
    return read_running(after)
  end
  return read_ended(after, queue, status)
end
