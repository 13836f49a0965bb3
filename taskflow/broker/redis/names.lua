-- Jobs hold the names of queues ("q:mail") and jobs ("j:work") as numbers. names: text -> number; texts: number -> text.

-- === part names ============================================================================================
-- Bytes. No name is longer.
local LONGEST_TEXT = 1024

-- Finds the text of a number in `names`, and restores it in `texts`. Returns nil if there is none.
local by_number
local function text_in_names(number)
  if not by_number then
    by_number = {}
    local stored = call('HGETALL', P .. 'names')
    for i = 1, #stored, 2 do
      by_number[tonumber(stored[i + 1]) or 0] = #stored[i] > 2 and stored[i] or nil
    end
  end
  local text = by_number[tonumber(number)]
  if text then
    call('HSET', P .. 'texts', number, text)
  end
  return text
end

-- Names of queues by number (both text), as far as the script has needed them.
local queue_names = {}

-- Returns the name without "q:" or "j:".
local function name_of(number)
  if not queue_names[number] then
    local text = call('HGET', P .. 'texts', number)
    queue_names[number] = string.sub(text and #text > 2 and text or text_in_names(number)
      or error('WRONGTYPE no text is stored for name number ' .. number), 3)
  end
  return queue_names[number]
end

-- === part texts_of =========================================================================================
local function get_all(hash, fields)
  local values = {}
  for first = 1, #fields, MOST do
    for _, value in ipairs(call('HMGET', P .. hash, unpack(fields, first, math.min(first + MOST - 1, #fields)))) do
      values[#values + 1] = value
    end
  end
  return values
end

-- Returns number, text, number, text, ... for the numbers of a set that have a text.
local function texts_of(numbers)
  local wanted, found = {}, {}
  for number in pairs(numbers) do
    wanted[#wanted + 1] = number
  end
  if #wanted > 0 then
    local texts = get_all('texts', wanted)
    for i, text in ipairs(texts) do
      texts[i] = text and #text <= LONGEST_TEXT and text or ''
    end
    for i, number in ipairs(get_all('names', texts)) do
      local text = tonumber(number) == wanted[i] and texts[i] or text_in_names(wanted[i]) or #texts[i] > 2 and texts[i]
      if text then
        found[#found + 1] = wanted[i]
        found[#found + 1] = text
      end
    end
  end
  return found
end

-- === part intern ===========================================================================================
-- Raises an error of a wrong type, which makes the caller reindex (broker.py): `names` and `texts` restore each other.
local function names_lost(text)
  error('WRONGTYPE the number of ' .. text .. ' has been lost')
end

-- Returns the numbers of these texts. A new text gets a number that no other text has.
local function intern(texts)
  local numbers = get_all('names', texts)
  for i, text in ipairs(texts) do
    if not numbers[i] then
      numbers[i] = call('HGET', P .. 'names', text)
      if i == 1 and call('EXISTS', P .. 'names') == 0 and call('EXISTS', P .. 'texts') == 1 then
        names_lost(text)
      end
      while not numbers[i] do
        local free = call('HINCRBY', P .. 'meta', 'names', 1)
        if free < 1 or free > 4294967295 then
          names_lost(text)
        end
        numbers[i] = call('HSETNX', P .. 'texts', free, text) == 1 and free
        if numbers[i] == 1 then
          call('HSET', P .. 'counts', 'whole', 1)
        end
      end
      call('HSET', P .. 'names', text, numbers[i])
    end
    numbers[i] = tonumber(numbers[i])
    if not (numbers[i] and numbers[i] >= 1 and numbers[i] <= 4294967295 and numbers[i] % 1 == 0) then
      names_lost(text)
    end
  end
  return numbers
end

-- Returns whether it is the name of a queue or a job.
local function is_text(text)
  return text and #text > 2 and #text <= LONGEST_TEXT and byte(text, 2) == 58
end

-- === script sweep ==========================================================================================
-- Runs after a purge. If there are many names, forgets those that no job has, and the totals of such queues. To find the names of jobs
-- that are in use it must look at each job, so it does this only if few are left.

local MANY_NAMES, MOST_JOBS = 1000, 10000
if call('HLEN', P .. 'names') <= MANY_NAMES then
  return
end

local stored, jobs, is_used = call('HGETALL', P .. 'counts'), 0, {}
for i = 1, #stored, 2 do
  local queue, number = tonumber(string.match(stored[i], '^(%d+):%d$')), tonumber(stored[i + 1])
  if queue and number > 0 then
    is_used[queue] = true
    jobs = jobs + number
  end
end

local ids = {}
local function see_all(members, from)
  for _, member in ipairs(members) do
    ids[#ids + 1] = string.sub(member, from)
  end
end

local function see_queue(queue)
  for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    see_all(call('LRANGE', list, 0, -1), 15)
    see_all(call('ZRANGE', returned, 0, -1), 15)
  end
  see_all(call('ZRANGE', P .. 'kept:' .. queue .. ':0', 0, -1), 7)
  see_all(call('ZRANGE', P .. 'kept:' .. queue .. ':1', 0, -1), 7)
end

-- Looks at every job, through the indexes.
local function see_jobs()
  for queue in pairs(is_used) do
    see_queue(queue)
  end
  see_all(call('ZRANGE', P .. 'due', 0, -1), 11)
  see_all(call('ZRANGE', P .. 'held', 0, -1), 1)
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      see_all(call('HVALS', P .. 'leases:' .. session), 1)
    end
  end
  prefetch(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job then
      is_used[job[F.name]] = true
    end
  end
end

local function forget_fields(hash, is_kept)
  local stored = call('HGETALL', P .. hash)
  for i = 1, #stored, 2 do
    local queue = tonumber(string.match(stored[i], '^(%d+):'))
    if queue and not is_kept[queue] then
      call('HDEL', P .. hash, stored[i])
    end
  end
end

local sees_jobs = jobs <= MOST_JOBS and call('EXISTS', P .. 'spoilt') == 0
if sees_jobs then
  see_jobs()
end
local names, is_kept = call('HGETALL', P .. 'names'), {}
for i = 1, #names, 2 do
  local number = tonumber(names[i + 1])
  if number and (is_used[number] or not sees_jobs and string.sub(names[i], 1, 2) == 'j:') then
    is_kept[number] = true
  elseif number then
    call('HDEL', P .. 'names', names[i])
    call('HDEL', P .. 'texts', number)
  end
end
forget_fields('counts', is_kept)
forget_fields('totals', is_kept)
