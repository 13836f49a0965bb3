-- Ready jobs of one queue and priority, in order. A list holds entries that arrive in order, as nearly all do. A sorted set holds the
-- others; all have one score, so their bytes order them. An entry is a time (8 bytes), the job's arrival number (6) and its id. It is valid
-- while the job has the same time and number; claims skip stale entries.

-- === part is_before ========================================================================================
-- Compares numbers, because Lua compares strings by the locale of the server.
local function is_before(one, other)
  local time, seq = struct.unpack('>I8I6', one)
  local other_time, other_seq = struct.unpack('>I8I6', other)
  return time < other_time or (time == other_time and seq < other_seq)
end

-- === part push =============================================================================================
-- Adds entries to the list if they are in order, else to the set.
local function push(list, returned, entries)
  local tail = call('LINDEX', list, -1)
  local last_time, last_seq = -1, -1
  if tail then
    last_time, last_seq = struct.unpack('>I8I6', tail)
  end
  local in_order, out_of_order = {}, {}
  for _, entry in ipairs(entries) do
    local time, seq = struct.unpack('>I8I6', entry)
    if time > last_time or (time == last_time and seq >= last_seq) then
      in_order[#in_order + 1] = entry
      last_time, last_seq = time, seq
    else
      out_of_order[#out_of_order + 1] = 0
      out_of_order[#out_of_order + 1] = entry
    end
  end
  in_portions('RPUSH', list, in_order)
  in_portions('ZADD', returned, out_of_order)
end

-- Adds entries that are in order among themselves.
local function append(list, returned, entries)
  local tail = call('LINDEX', list, -1)
  if tail and is_before(entries[1], tail) then
    push(list, returned, entries)
  else
    in_portions('RPUSH', list, entries)
  end
end

-- === part peek =============================================================================================
-- Returns the keys of the list and the set. `place` is a queue's number and a priority.
local function ready_keys(place)
  return P .. 'ready_list:' .. place, P .. 'returned:' .. place
end

-- Returns the first entries of both in order, and which of them are in the list; nil instead if all are.
local function peek(list, returned, number)
  local one = call('LRANGE', list, 0, number - 1)
  local other = call('ZRANGE', returned, 0, number - 1)
  if #other == 0 then
    return one
  end
  local merged, is_listed, i, k = {}, {}, 1, 1
  while #merged < number and (one[i] or other[k]) do
    local is_first = one[i] and (not other[k] or is_before(one[i], other[k])) or false
    merged[#merged + 1] = is_first and one[i] or other[k]
    is_listed[#merged] = is_first
    i, k = i + (is_first and 1 or 0), k + (is_first and 0 or 1)
  end
  return merged, is_listed
end

-- Removes the first `number` entries that `peek` returned.
local function drop_first(list, returned, number, is_listed)
  local from_list = is_listed and 0 or number
  for i = 1, is_listed and number or 0 do
    from_list = from_list + (is_listed[i] and 1 or 0)
  end
  if from_list > 0 then
    call('LTRIM', list, from_list, -1)
  end
  if number > from_list then
    call('ZREMRANGEBYRANK', returned, 0, number - from_list - 1)
  end
end
