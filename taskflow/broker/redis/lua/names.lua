-- Names of queues ("q:mail") and jobs ("j:work") are kept as numbers in every job. names: text -> number; texts: back.

-- The numbers of these texts, made where there are none.
local function intern(texts)
  local numbers = call('HMGET', P .. 'names', unpack(texts))
  for i, text in ipairs(texts) do
    if not numbers[i] then
      numbers[i] = call('HGET', P .. 'names', text) or call('HINCRBY', P .. 'meta', 'names', 1)
      call('HSET', P .. 'names', text, numbers[i])
      call('HSET', P .. 'texts', numbers[i], text)
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
    for i, text in ipairs(call('HMGET', P .. 'texts', unpack(asked))) do
      told[#told + 1] = asked[i]
      told[#told + 1] = text
    end
  end
  return told
end

-- Without its "q:" or "j:".
local function name_of(number)
  return string.sub(call('HGET', P .. 'texts', number) or '?:?', 3)
end
