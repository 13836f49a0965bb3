-- The number of jobs in each queue and status, and the number of events.

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

-- Changes the number of ready jobs. The last one takes stale entries with it.
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
