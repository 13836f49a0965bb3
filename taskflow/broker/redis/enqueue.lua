-- Adds plain calls: with nothing but an id, a queue, a job, a priority, a payload and extras, ready at once. Refused by the server when
-- it is out of memory: see the flags in scripts.py.
--
-- arguments  texts of the queues and jobs; ids of those whose payload is kept apart; and then for each run of calls that are alike but for the rest an array: the places of its
--            queue and job among the texts, priority, and for each call its id, and its extras and payload as the fixed layout has them;
--            at least one and at most MOST calls in all
-- reply      nil when all were added; "KNOWN", and nothing is: some id is there already, or twice among them (see add.lua); "LACKING",
--            and nothing is: a payload that was sent ahead is not there

local texts, apart = given[1], given[2]
local intern, is_lacking, keep_bodies
if #apart > 0 then
  intern, is_lacking, keep_bodies = the_rest()
  if is_lacking(apart) then
    return redis.status_reply('LACKING')
  end
end
-- As text, where they are known: numbers go into keys, and Lua takes longer to write one than to send a command.
local numbers = call('HMGET', P .. 'names', unpack(texts))
for i = 1, #texts do
  local number = numbers[i]
  if not number then
    numbers = the_rest()(texts)
    break
  elseif #number > 10 or string.find(number, '%D') then
    error('WRONGTYPE a name has no number')
  end
end
local calls = 0
for r = 3, #given do
  calls = calls + (#given[r] - 3) / 2
end
local seq = call('HINCRBY', P .. 'meta', 'seq', calls) - calls
if seq < 0 or seq > 281474976700000 then -- nobody has added so many
  error('WRONGTYPE the number of arrivals has been lost')
end
local values, is_named, places, key, value = {}, {}, {}, P .. 'j:', 0

-- The layout is that of fields.py.
for r = 3, #given do
  local run = given[r]
  local queue, priority = numbers[run[1]], run[3]
  local name = queue .. ':' .. priority
  local place = places[name]
  if not place then
    place = { queue = queue, called = sub(texts[run[1]], 3), priority = priority, entries = {} }
    places[name] = place
  end
  local entries = place.entries
  local entry = #entries
  local kind = struct.pack('>BbI4I4', S.READY, priority, queue, numbers[run[2]])
  local now = struct.pack('>I8', wall)
  for i = 4, #run, 2 do
    local id = run[i]
    if is_named[id] then
      return redis.status_reply('KNOWN')
    end
    is_named[id] = true
    seq, value, entry = seq + 1, value + 2, entry + 1
    local stands = struct.pack('>I8I6', wall, seq)
    values[value - 1], values[value] = key .. id, kind .. stands .. now .. run[i + 1]
    entries[entry] = stands .. id
  end
end
if call('MSETNX', unpack(values)) == 0 then
  return redis.status_reply('KNOWN')
end
if #apart > 0 then
  keep_bodies(apart)
end
for name, place in pairs(places) do
  local queue, priority, entries = place.queue, place.priority, place.entries
  append(P .. 'r:' .. name, P .. 'z:' .. name, entries)
  call('ZADD', P .. 'p:' .. queue, -priority, priority)
  if change(queue, S.READY, #entries) == #entries then
    show_ready(place.called)
  end
  call('HINCRBY', P .. 'totals', queue .. ':' .. E.ENQUEUE, #entries)
  rung['queue:' .. place.called] = true
  rung['queues'] = true
end
tell_armed()
return nil
