-- Reads records, indexes and counts.

-- === part run_query ========================================================================================
-- arguments  kinds and ids of records in turn; scans; groups; whether to read the counts of events
-- a scan     name; least member; the member before which it ends, or ''; whether backwards; limit; whether with records; kind; where the id
--            begins in a member, or 0 for after the first \0\1; the queue or session of the prefix, or false
-- groups     name; least member; the end, as above; the number of variable-length fields; whether counted
-- reply      wall, steady, records, scans: members and records, alternating, groups: first and last members and sizes, alternating, counts:
--            names and numbers, alternating. A session's record is followed by the number of its last request

local function records_of(kind, ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. PREFIXES[kind + 1] .. id
  end
  local found = get_all(keys)
  for i, stored in ipairs(found) do
    if stored and #stored > MAX_RECORD then
      found[i] = sub(stored, 1, 12) -- too short to be read
    end
  end
  if kind == K.SESSION then
    for i, id in ipairs(ids) do
      keys[i] = P .. 'r:' .. id
    end
    for i, request in ipairs(get_all(keys)) do
      found[i] = found[i] and found[i] .. (request and sub(request, 1, 8) or enc(0))
    end
  end
  return found
end

local function range(name, least, ends, backwards, limit)
  local first, last = '[' .. least, ends == '' and '+' or '(' .. ends
  if backwards then
    return call('ZRANGE', P .. 'i:' .. name, last, first, 'BYLEX', 'REV', 'LIMIT', 0, limit)
  end
  return call('ZRANGE', P .. 'i:' .. name, first, last, 'BYLEX', 'LIMIT', 0, limit)
end

local function is_within(member, least, ends)
  return not is_less(member, least) and (ends == '' or is_less(member, ends))
end

local function by_bytes(one, other)
  return is_less(one, other)
end

-- --- ready jobs ----------------------------------------------------------------------------------------

-- Returns the first position from 0 up to `past` at which the list has an entry that is not less, or `past`.
local function rank_of(list, entry, past)
  local first = 0
  while first < past do
    local middle = math.floor((first + past) / 2)
    if is_less(call('LINDEX', list, middle), entry) then
      first = middle + 1
    else
      past = middle
    end
  end
  return first
end

-- Calls `take` with valid entries of a place between two entries ('' for no end), until it returns false. Reads `page` entries at first.
local function read_place(place, least, ends, backwards, page, take)
  local list, back = P .. 'list:' .. place, P .. 'back:' .. place
  local length = call('LLEN', list)
  local from, past = rank_of(list, least, length), ends == '' and length or rank_of(list, ends, length)
  local low, high, last = '[' .. least, ends == '' and '+' or '(' .. ends, nil
  while true do
    local one, other, entries = {}, nil, {}
    if backwards then
      local found = past > from and call('LRANGE', list, math.max(from, past - page), past - 1) or {}
      for i = #found, 1, -1 do
        one[#one + 1] = found[i]
      end
      other = call('ZRANGE', back, high, low, 'BYLEX', 'REV', 'LIMIT', 0, page)
    else
      one = past > from and call('LRANGE', list, from, math.min(past, from + page) - 1) or {}
      other = call('ZRANGE', back, low, high, 'BYLEX', 'LIMIT', 0, page)
    end
    local i, k = 1, 1
    while #entries < page and (one[i] or other[k]) do
      if one[i] and (not other[k] or is_less(one[i], other[k]) ~= backwards) then
        entries[#entries + 1], i = one[i], i + 1
      else
        entries[#entries + 1], k = other[k], k + 1
      end
    end
    if #entries == 0 then
      return true
    end
    if backwards then
      past = past - i + 1
      high = k > 1 and '(' .. other[k - 1] or high
    else
      from = from + i - 1
      low = k > 1 and '(' .. other[k - 1] or low
    end
    local keys = {}
    for n, entry in ipairs(entries) do
      keys[n] = P .. 'j:' .. sub(entry, 17)
    end
    for n, stored in ipairs(get_all(keys)) do
      if stored and entries[n] ~= last and is_entry_of(stored, entries[n], place) then
        last = entries[n]
        if not take(last, stored) then
          return false
        end
      end
    end
    page = 200
  end
end

local function ready_queues(only)
  if only then
    return { only }
  end
  local names, stored = {}, call('HGETALL', P .. 'counts')
  for i = 1, #stored, 2 do
    if byte(stored[i]) == 48 + F.ready_status and tonumber(stored[i + 1]) > 0 then
      names[#names + 1] = sub(stored[i], 2)
    end
  end
  table.sort(names, by_bytes)
  return names
end

-- Calls `take` with the places of ready jobs in order, the beginning of their members, and the bounds of their entries.
local function each_place(least, ends, backwards, only, take)
  local queues = ready_queues(only)
  for n = 1, #queues do
    local queue = queues[backwards and #queues + 1 - n or n]
    local priorities = call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)
    for m = 1, #priorities do
      local priority = priorities[backwards and #priorities + 1 - m or m]
      local begin = esc(queue) .. struct.pack('>I2', 32768 - priority)
      local low = sub(least, 1, #begin) == begin and sub(least, #begin + 1) or is_less(begin, least) and '\255' or ''
      local high = (ends == '' or is_less(begin, ends) and sub(ends, 1, #begin) ~= begin) and ''
        or is_less(begin, ends) and sub(ends, #begin + 1) or '\0'
      if low ~= '\255' and high ~= '\0' and not take(priority .. ':' .. queue, begin, low, high) then
        return
      end
    end
  end
end

local function scan_ready(least, ends, backwards, limit, only)
  local members, records = {}, {}
  if limit > 0 then
    each_place(least, ends, backwards, only, function(place, begin, low, high)
      return read_place(place, low, high, backwards, 50, function(entry, stored)
        members[#members + 1], records[#records + 1] = begin .. entry, stored
        return #members < limit
      end)
    end)
  end
  return members, records
end

-- --- leases --------------------------------------------------------------------------------------------

-- Claims are sorted as pairs of numbers, because comparing strings takes ten times as long.
local function sorted_claims(session)
  local stored, claims, ids, highs, lows, found = call('HGETALL', P .. 'leases:' .. session), {}, {}, {}, {}, {}
  for i = 1, #stored, 2 do
    local claim = stored[i]
    local high, low = struct.unpack('>I6I6', claim .. string.rep('\0', 12 - #claim))
    if not lows[high] then
      highs[#highs + 1], lows[high], found[high] = high, {}, {}
    end
    ids[claim], lows[high][#lows[high] + 1], found[high][low] = stored[i + 1], low, claim
  end
  table.sort(highs)
  for _, high in ipairs(highs) do
    table.sort(lows[high])
    for _, low in ipairs(lows[high]) do
      claims[#claims + 1] = found[high][low]
    end
  end
  return claims, ids
end

local function lessees(only)
  return only and { only } or call('ZRANGE', P .. 'lessees', 0, -1)
end

local function scan_leases(least, ends, backwards, limit, only)
  local members, sessions = {}, lessees(only)
  for n = 1, #sessions do
    local session = sessions[backwards and #sessions + 1 - n or n]
    local begin = esc(session)
    local is_whole = only and least == begin
    if is_whole or (ends == '' or is_less(begin, ends)) and (is_less(least, begin) or sub(least, 1, #begin) == begin) then
      local claims, ids = sorted_claims(session)
      local function member_of(k)
        local claim = claims[backwards and #claims + 1 - k or k]
        return begin .. esc(claim) .. ids[claim]
      end
      local from, past = 1, #claims + 1
      while from < past do
        local middle = math.floor((from + past) / 2)
        local member = member_of(middle)
        if backwards and ends ~= '' and not is_less(member, ends) or not backwards and is_less(member, least) then
          from = middle + 1
        else
          past = middle
        end
      end
      while from <= #claims and #members < limit and is_within(member_of(from), least, ends) do
        members[#members + 1], from = member_of(from), from + 1
      end
    end
  end
  return members
end

-- --- any index -----------------------------------------------------------------------------------------

-- Returns members, and their records if it has read them.
local function members_of(name, least, ends, backwards, limit, only)
  if name == 'ready' then
    return scan_ready(least, ends, backwards, limit, only)
  elseif name == 'leases' then
    return scan_leases(least, ends, backwards, limit, only)
  end
  return limit > 0 and range(name, least, ends, backwards, limit) or {}
end

-- Returns what each scan selects. The records of all are read together.
local function scan_all(scans)
  local replies, ids, places = {}, {}, {} -- by kind: ids of records, and where they go: a reply and a number, alternating
  for n, each in ipairs(scans) do
    local name, least, ends, backwards, limit, with_records, kind, id_at, only = unpack(each)
    local members, records = members_of(name, least, ends, backwards, limit, only)
    local reply = with_records and {} or members
    replies[n] = reply
    for i, member in ipairs(with_records and members or {}) do
      reply[2 * i - 1], reply[2 * i] = member, records and records[i]
      if not records then
        local _, last = nil, id_at - 1
        if id_at == 0 then
          _, last = string.find(member, '\0\1', 1, true)
        end
        append_to(ids, kind, sub(member, last + 1))
        append_to(places, kind, reply)
        append_to(places, kind, 2 * i)
      end
    end
  end
  for kind, of_kind in pairs(ids) do
    for n, stored in ipairs(records_of(kind, of_kind)) do
      places[kind][2 * n - 1][places[kind][2 * n]] = stored
    end
  end
  return replies
end

-- Returns the first and last member of each group and its size, stepping from group to group. It stops after L.portion groups, which take
-- about 2 ms: store.py asks for more.
local function groups(name, least, ends, texts, is_counted)
  local found = {}
  if name == 'status' then
    return call('HGETALL', P .. 'counts')
  elseif name == 'ready' then
    each_place(least, ends, false, false, function(place, begin, low, high)
      read_place(place, low, high, false, 1, function(entry)
        found[#found + 1], found[#found + 2], found[#found + 3] = begin .. entry, '', 0
        return false
      end)
      return true
    end)
    return found
  elseif name == 'leases' then
    for _, session in ipairs(lessees(false)) do
      local begin, claims, ids = esc(session), sorted_claims(session)
      if #claims > 0 and is_within(begin, least, ends) then
        local first, last = claims[1], claims[#claims]
        found[#found + 1] = begin .. esc(first) .. ids[first]
        found[#found + 1] = begin .. esc(last) .. ids[last]
        found[#found + 1] = #claims
      end
    end
    return found
  end
  while true do
    local first = #found < 3 * L.portion and range(name, least, ends, false, 1)[1]
    if not first then
      return found
    end
    local at = 0
    for _ = 1, texts do
      local _, last = string.find(first, '\0\1', at + 1, true)
      at = last
    end
    local prefix = sub(first, 1, at)
    least = sub(prefix, 1, -2) .. char(byte(prefix, -1) + 1)
    found[#found + 1], found[#found + 2], found[#found + 3] = first, '', 0
    if is_counted then
      found[#found - 1] = range(name, prefix, least, true, 1)[1]
      found[#found] = call('ZLEXCOUNT', P .. 'i:' .. name, '[' .. prefix, '(' .. least)
    end
  end
end

local function run_query(query)
  local refs, scans, wanted, with_totals = unpack(query)
  local records, ids, places = {}, {}, {}
  for i = 1, #refs, 2 do
    local kind = refs[i]
    append_to(ids, kind, refs[i + 1])
    append_to(places, kind, (i + 1) / 2)
  end
  for kind, of_kind in pairs(ids) do
    for n, stored in ipairs(records_of(kind, of_kind)) do
      records[places[kind][n]] = stored
    end
  end
  local grouped = {}
  for i, each in ipairs(wanted) do
    grouped[i] = groups(unpack(each))
  end
  return { wall, steady, records, scan_all(scans), grouped, with_totals and call('HGETALL', P .. 'totals') or {} }
end

-- === script query ==========================================================================================
-- Arguments: those of a query, then the ids of jobs whose ends a caller awaits; its listener; and for upkeep, the number of jobs that a
-- queue keeps at most, else false. Upkeep's listener waits for the next due time. Its reply ends with whether `fade` has anything to do.

local max_kept = given[7]
if max_kept then
  add_listener(P .. 'upkeepers', given[6])
  for _, queue in ipairs(call('ZRANGE', P .. 'ready', 0, 999)) do -- a nudged listener may hang, or have no room
    nudge(queue, tonumber(call('HGET', P .. 'counts', F.ready_status .. queue) or 0))
  end
end
for _, id in ipairs(given[5]) do
  await_end(id, given[6])
end
local reply = run_query(given)
reply[7] = max_kept and (#range('fading', '', enc(wall + 1), false, 1) > 0
  or #call('ZRANGEBYSCORE', P .. 'kept:0', '(' .. max_kept, '+inf', 'LIMIT', 0, 1) > 0
  or #call('ZRANGEBYSCORE', P .. 'kept:1', '(' .. max_kept, '+inf', 'LIMIT', 0, 1) > 0)
return reply

-- === part is_entry_of ======================================================================================
-- Returns whether the job is READY at this place. A job whose queue cannot be read counts as READY wherever it has an entry.
local function is_entry_of(stored, entry, place)
  if #stored > MAX_RECORD then
    return false
  elseif byte(stored) == F.ready_status then
    local length = struct.unpack('>I2', stored, L.lengths)
    local queue = sub(stored, L.waiting + 1, L.waiting + length)
    return sub(stored, L.place) == sub(entry, 1, 16) and (byte(stored, L.priority) - 128 .. ':' .. queue == place or is_spoilt(queue))
  elseif byte(stored) ~= 64 + F.ready_status then
    return false
  end
  local is_read, header = pcall(decode, stored)
  return is_read and header[F.due_at] .. header[F.seq] == sub(entry, 1, 16)
    and (header[F.priority] .. ':' .. header[F.queue] == place or is_spoilt(header[F.queue]))
end
