-- Finds indexes that have lost jobs. The caller then reindexes (reindex.lua).

-- === part check_indexes ====================================================================================
-- Raises an error of a wrong type, which makes the caller reindex (broker.py).
local function request_reindex(of_what)
  error('WRONGTYPE ' .. of_what)
end

-- Raises if counts has lost the field "whole", which it has from the first name on: other fields are then lost too. A store that was just
-- reindexed is left alone for a while, even if more keys disappear.
local function check_counts()
  if call('HEXISTS', P .. 'counts', 'whole') == 0 and call('EXISTS', P .. 'names') == 1 and call('PTTL', P .. 'reindexed') < 0 then
    request_reindex('the counts of jobs have been lost')
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

-- Restores the index `ready` if it is gone. Without it, workers of all queues would not find ready jobs.
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
  for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    length = length + call('LLEN', list) + call('ZCARD', returned)
  end
  return length
end

-- Fields of a hash that one call looks at, in a few milliseconds.
local IN_TURN = 500

-- Returns the next fields and values of a hash, and whether these were the last.
local function next_of(hash)
  local page = call('HSCAN', P .. hash, call('HGET', P .. 'meta', 'next_of_' .. hash) or 0, 'COUNT', IN_TURN)
  call('HSET', P .. 'meta', 'next_of_' .. hash, page[1])
  return page[2], page[1] == '0'
end

-- Raises if an index holds fewer jobs or schedules than are counted: the missing ones would never run.
local function check_scheduled_and_running()
  local scheduled, running, leases = 0, 0, 0
  each_count(call('HGETALL', P .. 'counts'), function(_, status, number)
    scheduled = scheduled + (status == S.SCHEDULED and number or 0)
    running = running + (status == S.RUNNING and number or 0)
  end)
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      leases = leases + call('HLEN', P .. 'leases:' .. session)
    end
  end
  if call('ZCARD', P .. 'due') < scheduled or leases < running then
    request_reindex('scheduled or running jobs are in no index')
  elseif call('ZCARD', P .. 'schedules') < (tonumber(call('HGET', P .. 'meta', 'schedules')) or 0) then
    request_reindex('schedules are in no index')
  end
end

local function check_indexes()
  local counts, is_last = next_of('counts')
  each_count(counts, function(queue, status, number)
    if status == S.READY and length_of_ready(queue) < number then
      request_reindex('ready jobs are in no list')
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
      request_reindex('a name has another number than its text')
    end
  end
  if call('HLEN', P .. 'names') ~= call('HLEN', P .. 'texts') then
    request_reindex('a number has no text')
  end
end

-- Checks a part of the indexes every 5 s, whichever session calls.
local function check_indexes_in_turn()
  local since = steady - (tonumber(call('HGET', P .. 'meta', 'sought_at')) or 0)
  if since < 0 or since > 5000000 then
    find_lost_queues()
    limit_sessions_to_ttl()
    if call('PTTL', P .. 'reindexed') < 0 and call('EXISTS', P .. 'spoilt') == 0 then -- otherwise a later call checks
      call('HSET', P .. 'meta', 'sought_at', steady)
      check_names()
      check_indexes()
    end
  end
end
