-- Names of queues ("q:mail") and jobs ("j:work") are kept as numbers in every job. names: text -> number; texts: back.

-- What one of them has lost the other tells: a wrong type is what makes the caller look at all keys (broker.py).
local function lost(what)
  error('WRONGTYPE nothing tells any more what ' .. what .. ' stands for')
end

local function get_all(hash, fields)
  local values = {}
  for first = 1, #fields, MOST do
    for _, value in ipairs(call('HMGET', P .. hash, unpack(fields, first, math.min(first + MOST - 1, #fields)))) do
      values[#values + 1] = value
    end
  end
  return values
end

-- The numbers of these texts, made where there are none; never one that stands for another text already.
local function intern(texts)
  local numbers = get_all('names', texts)
  for i, text in ipairs(texts) do
    if not numbers[i] then
      numbers[i] = call('HGET', P .. 'names', text)
      if i == 1 and call('EXISTS', P .. 'names') == 0 and call('EXISTS', P .. 'texts') == 1 then
        lost(text)
      end
      while not numbers[i] do
        local free = call('HINCRBY', P .. 'meta', 'names', 1)
        numbers[i] = call('HSETNX', P .. 'texts', free, text) == 1 and free
        if numbers[i] == 1 then
          call('HSET', P .. 'counts', 'whole', 1)
        end
      end
      call('HSET', P .. 'names', text, numbers[i])
    end
    numbers[i] = tonumber(numbers[i])
  end
  return numbers
end

-- For a reply: the numbers in the set, and the text of each, one after the other.
local function texts_of(numbers)
  local asked, told = {}, {}
  for number in pairs(numbers) do
    asked[#asked + 1] = number
  end
  if #asked > 0 then
    for i, text in ipairs(get_all('texts', asked)) do
      told[#told + 1] = asked[i]
      told[#told + 1] = text or lost(asked[i])
    end
  end
  return told
end

-- Names of queues by their numbers (both as text), where a script has come upon both.
local told_names = {}

-- Without its "q:" or "j:".
local function name_of(number)
  return told_names[number] or string.sub(call('HGET', P .. 'texts', number) or lost(number), 3)
end
