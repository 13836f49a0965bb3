-- Adds plain calls: with nothing but an id, a queue, a job, a priority, a payload and extras, ready at once. Refused by the server when
-- it is out of memory: see the flags in scripts.py.
--
-- arguments  texts of the queues and jobs, and then for each run of calls that are alike but for the rest an array: the places of its
--            queue and job among the texts, priority, and for each call its id, and its extras and payload as the fixed layout has them;
--            at least one and at most MOST calls in all
-- reply      nil when all were added, or "KNOWN", and nothing is: some id is there already, or twice among them (see add.lua)

local texts = table.remove(given, 1)
local numbers = intern(texts)
local calls = 0
for _, run in ipairs(given) do
  calls = calls + (#run - 3) / 2
end
local seq = call('HINCRBY', P .. 'meta', 'seq', calls) - calls
local now = struct.pack('>I8', wall)
local values, is_named, places = {}, {}, {}

local function place_of(queue, priority)
  local place = queue .. ':' .. priority
  places[place] = places[place] or { queue = queue, priority = priority, entries = {} }
  return places[place].entries
end

-- False when an id comes twice. The layout is that of fields.py.
local function add_run(run)
  local queue, priority, key = numbers[run[1]], run[3], P .. 'j:'
  local kind = struct.pack('>BbI4I4', S.READY, priority, queue, numbers[run[2]])
  local entries = place_of(queue, priority)
  local value, entry = #values, #entries
  for i = 4, #run, 2 do
    local id = run[i]
    if is_named[id] then
      return false
    end
    is_named[id] = true
    seq, value, entry = seq + 1, value + 2, entry + 1
    local place = struct.pack('>I8I6', wall, seq)
    values[value - 1], values[value] = key .. id, kind .. place .. now .. run[i + 1]
    entries[entry] = place .. id
  end
  return true
end

for _, run in ipairs(given) do
  if not add_run(run) then
    return redis.status_reply('KNOWN')
  end
end
if call('MSETNX', unpack(values)) == 0 then
  return redis.status_reply('KNOWN')
end
for _, place in pairs(places) do
  local queue, priority, entries = place.queue, place.priority, place.entries
  local list, returned = ready_keys(queue .. ':' .. priority)
  append(list, returned, entries)
  call('ZADD', P .. 'p:' .. queue, -priority, priority)
  count(queue, S.READY, #entries)
  tally(queue, E.ENQUEUE, #entries)
end
for _, text in ipairs(texts) do
  if string.sub(text, 1, 2) == 'q:' then
    rung['queue:' .. string.sub(text, 3)] = true
    rung['queues'] = true
  end
end
write_counts()
tell_armed()
return nil
