-- Ids that may have one of these statuses, from the indexes of those. Arguments: which index ("held", "due", "leases", "ended"),
-- where to go on, how many. The reply: {where to go on or -1, id, ...}. Some may have another status: the caller's filter looks.

local index, first, number = given[1], given[2], given[3]
local reply = { -1 }

local function page(members, from)
  for _, member in ipairs(members) do
    reply[#reply + 1] = string.sub(member, from)
  end
  if #members == number then
    reply[1] = first + number
  end
end

if index == 'held' then
  for _, id in ipairs(call('SMEMBERS', P .. 'held')) do
    reply[#reply + 1] = id
  end
elseif index == 'due' then
  page(call('ZRANGE', P .. 'due', first, first + number - 1), 11)
elseif index == 'ended' then
  page(call('ZRANGE', P .. 'fade', first, first + number - 1), 1)
else
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      for _, id in ipairs(call('HVALS', P .. 'l:' .. session)) do
        reply[#reply + 1] = id
      end
    end
  end
end
return reply
