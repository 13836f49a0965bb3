-- === script add ============================================================================================
-- Adds READY jobs without ties that are due now. A server whose memory is full refuses this script: see the flags in scripts.py.
--
-- arguments  revision; contents that were sent ahead; an array for each run of jobs with one queue and priority: queue, priority, then for
--            each job its id and the end of its record, from the lengths on; 1 to MAX_VALUES jobs in all
-- reply      nil if all were added. Otherwise none was added: "KNOWN" if an id is stored, "MISSING" if content that was sent ahead is gone

local rev, ahead = given[1], given[2]
if #ahead > 0 and has_missing(ahead) then
  return redis.status_reply('MISSING')
end
local jobs = 0
for r = 3, #given do
  jobs = jobs + (#given[r] - 2) / 2
end
local seq = call('HINCRBY', P .. 'meta', 'seq', jobs) - jobs
local now = enc(wall)
local since, key, value, values, places = now .. '\128', P .. 'j:', 0, {}, {}
for r = 3, #given do
  local run = given[r]
  local queue, priority = run[1], run[2]
  local place = priority .. ':' .. queue
  local entries = places[place]
  if not entries then
    entries = { queue = queue, priority = priority }
    places[place] = entries
  end
  local head, count = char(F.ready_status) .. rev .. '\0\0' .. char(priority + 128), #entries
  for i = 3, #run, 2 do
    local id = run[i]
    seq, value, count = seq + 1, value + 2, count + 1
    local position = struct.pack('>c9I7', since, seq)
    values[value - 1], values[value] = key .. id, head .. position .. now .. run[i + 1]
    entries[count] = position .. id
  end
end
if call('MSETNX', unpack(values)) == 0 then
  return redis.status_reply('KNOWN')
end
for _, content in ipairs(ahead) do
  call('PERSIST', P .. 'c:' .. content)
end
for place, entries in pairs(places) do
  local queue = entries.queue
  append(place, entries)
  call('ZADD', P .. 'priorities:' .. queue, -entries.priority, entries.priority)
  change_ready(queue, #entries)
  call('HINCRBY', P .. 'totals', E.ENQUEUE .. ':' .. queue, #entries)
  nudge(queue, #entries)
end
return nil
