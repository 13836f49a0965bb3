-- Ready jobs of one queue and priority, in order. A list holds entries that arrive in order, as nearly all do. A sorted set holds the
-- others, all with one score, so that their bytes order them. An entry is due_at (8 bytes), seq (8) and the job's id. It is valid while the
-- job is READY with this due_at and seq; claims skip stale entries.

-- === part is_less ==========================================================================================
-- Compares bytes, because Lua compares strings by the locale of the server.
local function is_less(one, other)
  local at = 1
  while true do
    local a, b, c, d = byte(one, at, at + 3)
    local e, f, g, h = byte(other, at, at + 3)
    if a ~= e then
      return not a or (e and a < e) or false
    elseif b ~= f then
      return not b or (f and b < f) or false
    elseif c ~= g then
      return not c or (g and c < g) or false
    elseif d ~= h then
      return not d or (h and d < h) or false
    elseif not d then
      return false
    end
    at = at + 4
  end
end

-- === part push =============================================================================================
-- Adds entries to the list if they are in order, else to the set.
local function push(place, entries)
  local last = call('LINDEX', P .. 'list:' .. place, -1)
  local in_order, out_of_order = {}, {}
  for _, entry in ipairs(entries) do
    if not last or not is_less(entry, last) then
      in_order[#in_order + 1] = entry
      last = entry
    else
      out_of_order[#out_of_order + 1] = entry
    end
  end
  in_portions('RPUSH', P .. 'list:' .. place, in_order)
  add_members(P .. 'back:' .. place, out_of_order)
end

-- Adds entries that are in order among themselves.
local function append(place, entries)
  local last = call('LINDEX', P .. 'list:' .. place, -1)
  if last and is_less(entries[1], last) then
    push(place, entries)
  else
    in_portions('RPUSH', P .. 'list:' .. place, entries)
  end
end

-- === part peek =============================================================================================
-- Returns the first entries of list and set in order, and which of them are in the list, or nil if all are.
local function peek(place, number)
  local one = call('LRANGE', P .. 'list:' .. place, 0, number - 1)
  local other = call('ZRANGE', P .. 'back:' .. place, 0, number - 1)
  if #other == 0 then
    return one
  end
  local merged, is_listed, i, k = {}, {}, 1, 1
  while #merged < number and (one[i] or other[k]) do
    local is_first = one[i] and (not other[k] or is_less(one[i], other[k])) or false
    merged[#merged + 1] = is_first and one[i] or other[k]
    is_listed[#merged] = is_first
    i, k = i + (is_first and 1 or 0), k + (is_first and 0 or 1)
  end
  return merged, is_listed
end

-- Removes the first `number` entries that `peek` returned.
local function drop_first(place, number, is_listed)
  local from_list = is_listed and 0 or number
  for i = 1, is_listed and number or 0 do
    from_list = from_list + (is_listed[i] and 1 or 0)
  end
  if from_list > 0 then
    call('LTRIM', P .. 'list:' .. place, from_list, -1)
  end
  if number > from_list then
    call('ZREMRANGEBYRANK', P .. 'back:' .. place, 0, number - from_list - 1)
  end
end

-- === part counts ===========================================================================================
local moves, events = {}, {}

local function count(queue, status, number)
  local of_queue = moves[queue]
  if not of_queue then
    of_queue = {}
    moves[queue] = of_queue
  end
  of_queue[status] = (of_queue[status] or 0) + number
end

local function tally(queue, event, number)
  local name = event .. ':' .. queue
  events[name] = (events[name] or 0) + number
end

-- === part change_count =====================================================================================
local function show_ready(queue)
  if call('EXISTS', P .. 'q:' .. queue) == 0 then
    call('ZADD', P .. 'ready', 0, queue)
  end
end

-- Changes the number of ready jobs. When none is left, removes stale entries too.
local function change_ready(queue, number)
  local now = call('HINCRBY', P .. 'counts', F.ready_status .. queue, number)
  if now <= 0 then
    call('ZREM', P .. 'ready', queue)
    for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
      call('UNLINK', P .. 'list:' .. priority .. ':' .. queue, P .. 'back:' .. priority .. ':' .. queue)
    end
    call('DEL', P .. 'priorities:' .. queue)
  elseif now == number then
    show_ready(queue)
  end
end

-- === part write_counts =====================================================================================
local KEPT = { [F.succeeded_status] = 'kept:0', [F.failed_status] = 'kept:1', [F.cancelled_status] = 'kept:0' }

local function write_counts()
  for queue, of_queue in pairs(moves) do
    for status, number in pairs(of_queue) do
      if number ~= 0 and status == F.ready_status then
        change_ready(queue, number)
      elseif number ~= 0 and status < F.buried_status then
        call('HINCRBY', P .. 'counts', sub('01234567', status + 1, status + 1) .. queue, number)
        if KEPT[status] then
          call('ZINCRBY', P .. KEPT[status], number, queue)
        end
      end
    end
  end
  for name, number in pairs(events) do
    call('HINCRBY', P .. 'totals', name, number)
  end
  moves, events = {}, {}
end
