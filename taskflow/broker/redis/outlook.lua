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
  if has_dying() or call('EXISTS', P .. 'crowded', P .. 'spoilt') > 0 then
    return 0
  end
  local wait = math.min(until_first('due', wall), until_first('exp', wall), until_first('fade', wall), until_first('alive', steady - 1))
  return wait == NEVER and -1 or math.max(0, wait)
end

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
