-- What there is to do, and whether the indexes by which it is found are there.

local NEVER = 2 ^ 53

-- Microseconds from `now` until the first of that index.
local function until_first(index, now)
  local first = call('ZRANGE', P .. index, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) - now or NEVER
end

local function has_dying()
  for _, id in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
    if call('EXISTS', P .. 'l:' .. id) == 1 then
      return true
    end
  end
  return false
end

-- Until upkeep might have something to move, -1 when nothing waits for it.
local function due_in()
  if has_dying() or call('EXISTS', P .. 'crowded') == 1 then
    return 0
  end
  local wait = math.min(until_first('due', wall), until_first('exp', wall), until_first('fade', wall), until_first('alive', steady - 1))
  return wait == NEVER and -1 or math.max(0, wait)
end

-- counts has the field "whole" from the first name on: where it has lost that, it has lost more. As a wrong type it makes the
-- caller have all counted again (broker.py).
local function miss_counts()
  if call('HEXISTS', P .. 'counts', 'whole') == 0 and call('EXISTS', P .. 'names') == 1 then
    error('WRONGTYPE the counts of jobs have been lost')
  end
end

-- Where the whole index is gone although jobs are ready, workers of every queue would not find them.
local function find_lost_queues()
  if call('EXISTS', P .. 'ready') == 1 then
    return
  end
  local stored = call('HGETALL', P .. 'counts')
  for i = 1, #stored, 2 do
    local queue, status = string.match(stored[i], '^(%d+):(%d+)$')
    local number = tonumber(stored[i + 1])
    if queue and tonumber(status) == S.READY and number > 0 then
      index_ready(queue, number, number)
    end
  end
end

-- Who looks need not all do so: it takes a look at the counts of every queue there has ever been.
local function find_lost_queues_in_turn()
  local since = steady - tonumber(call('HGET', P .. 'meta', 'sought_at') or 0)
  if since < 0 or since > 5000000 then
    call('HSET', P .. 'meta', 'sought_at', steady)
    find_lost_queues()
  end
end
