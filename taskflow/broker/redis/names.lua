-- Names of queues ("q:mail") and jobs ("j:work") are kept as numbers in every job. names: text -> number; texts: back.

-- What one of them has lost the other tells: a wrong type is what makes the caller look at all keys (broker.py).
local function lose(text)
  error('WRONGTYPE nothing tells any more which number ' .. text .. ' has')
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
        lose(text)
      end
      while not numbers[i] do
        local free = call('HINCRBY', P .. 'meta', 'names', 1)
        if free < 1 or free > 4294967295 then
          lose(text)
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
      lose(text)
    end
  end
  return numbers
end

-- Whether it names a queue or a job.
local function is_text(text)
  return text and #text > 2 and byte(text, 2) == 58
end

-- What names has for a number whose text is lost or altered, which is written back; nil if nothing stands for it.
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

-- For a reply: the numbers in the set, and the text of each that has one, one after the other.
local function texts_of(numbers)
  local asked, told = {}, {}
  for number in pairs(numbers) do
    asked[#asked + 1] = number
  end
  if #asked > 0 then
    local texts = get_all('texts', asked)
    for i, text in ipairs(texts) do
      texts[i] = text or ''
    end
    for i, number in ipairs(get_all('names', texts)) do
      local text = tonumber(number) == asked[i] and texts[i] or text_in_names(asked[i]) or #texts[i] > 2 and texts[i]
      if text then
        told[#told + 1] = asked[i]
        told[#told + 1] = text
      end
    end
  end
  return told
end

-- Names of queues by their numbers (both as text), where a script has come upon both.
local told_names = {}

-- Without its "q:" or "j:".
local function name_of(number)
  if not told_names[number] then
    local text = call('HGET', P .. 'texts', number)
    told_names[number] = string.sub(text and #text > 2 and text or text_in_names(number)
      or error('WRONGTYPE no text has the number ' .. number), 3)
  end
  return told_names[number]
end
