-- The number of jobs in each queue and status, and the number of events.

-- === part change_count =====================================================================================
-- Changes a count at once, and returns the new number.
local function change(queue, status, number)
  local digit = sub('01234567', status + 1, status + 1) -- formatting a number in Lua takes longer than sending the command
  local now = call('HINCRBY', P .. 'counts', queue .. ':' .. digit, number)
  if now < 0 then -- counts are lost: this error makes the caller reindex (broker.py)
    error('WRONGTYPE the counts of jobs have been lost')
  end
  return now
end

-- ready: the names of queues that have ready jobs and are not paused.
local function show_ready(name)
  if call('SISMEMBER', P .. 'paused', name) == 0 then
    call('ZADD', P .. 'ready', 0, name)
  end
end

-- === part counts ===========================================================================================
-- Collected during the call, and written once at its end.
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
  local of_queue = events[queue]
  if not of_queue then
    of_queue = {}
    events[queue] = of_queue
  end
  of_queue[event] = (of_queue[event] or 0) + (number or 1)
end

local function index_ready(queue, number, now_ready)
  if now_ready == 0 then
    call('ZREM', P .. 'ready', name_of(queue))
    local left = call('ZRANGE', P .. 'priorities:' .. queue, 0, -1) -- stale entries
    for _, priority in ipairs(left) do
      call('UNLINK', P .. 'ready_list:' .. queue .. ':' .. priority, P .. 'returned:' .. queue .. ':' .. priority)
    end
    if #left > 0 then
      call('DEL', P .. 'priorities:' .. queue)
    end
  elseif now_ready == number then
    show_ready(name_of(queue))
  end
end

-- crowded: the names of queues that keep more jobs than allowed. "\1" sorts before every character of a name.
local function index_crowded(queue, failed)
  local kept = 0
  local codes = failed == 1 and { S.FAILED } or { S.SUCCEEDED, S.CANCELLED }
  for _, code in ipairs(codes) do
    kept = kept + (call('HGET', P .. 'counts', queue .. ':' .. code) or 0)
  end
  if kept > R.kept_per_queue then
    call('ZADD', P .. 'crowded', 0, name_of(queue) .. '\1' .. failed)
  end
end

local function write_counts()
  for queue, of_queue in pairs(moves) do
    for status, number in pairs(of_queue) do
      if number ~= 0 then
        local now = change(queue, status, number)
        if status == S.READY then
          index_ready(queue, number, now)
        end
      end
    end
    if (of_queue[S.FAILED] or 0) > 0 then
      index_crowded(queue, 1)
    end
    if (of_queue[S.SUCCEEDED] or 0) > 0 or (of_queue[S.CANCELLED] or 0) > 0 then
      index_crowded(queue, 0)
    end
  end
  for queue, of_queue in pairs(events) do
    for event, number in pairs(of_queue) do
      call('HINCRBY', P .. 'totals', queue .. ':' .. event, number)
    end
  end
  moves, events = {}, {}
end
