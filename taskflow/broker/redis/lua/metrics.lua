-- Totals. The reply: msgpack, {field, number, ...} and {number, text, ...} of the queues; a field is "queue's number:event".

local stored = call('HGETALL', P .. 'totals')
local numbers = {}
for i = 1, #stored, 2 do
  numbers[tonumber(string.match(stored[i], '^(%d+):'))] = true
  stored[i + 1] = tonumber(stored[i + 1])
end
return cmsgpack.pack({ stored, texts_of(numbers) })
