-- Totals. The reply: msgpack, {field, number, ...} and {number, text, ...} of the queues; a field is "queue's number:event".

local stored, told, numbers = call('HGETALL', P .. 'totals'), {}, {}
for i = 1, #stored, 2 do
  local queue, total = tonumber(string.match(stored[i], '^(%d+):')), tonumber(stored[i + 1])
  if queue and total then
    numbers[queue] = true
    told[#told + 1], told[#told + 2] = stored[i], total
  end
end
return cmsgpack.pack({ told, texts_of(numbers) })
