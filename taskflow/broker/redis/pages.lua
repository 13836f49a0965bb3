-- Reads jobs in the order of an index, for the pages of the console. index_readers.lua reads the entries.

-- === script candidates =====================================================================================
-- Returns the ids of the next entries of an index, whatever has become of their jobs. Arguments: status or false, tag or false, name of a
-- queue or false, the place to begin behind or false, how many. Reply: {the place of the last one, as msgpack, id, ...}; the place is false
-- if there are no more.

local status, tag, queue, after, number = unpack(given)
local entries = reader_of(status, tag, after or nil, queue)(number)
local reply = { cmsgpack.pack(#entries > 0 and entries[#entries][2]) }
for i, entry in ipairs(entries) do
  reply[1 + i] = entry[1]
end
return reply

-- === script page ===========================================================================================
-- Returns jobs that match a filter, in the order of an index. Arguments: filter (see `matching`), status or false, tag or false, the place
-- to begin behind or false, the most jobs to list, the most to read.
--
-- Reply: {msgpack, id, job, ...}. The msgpack has the server's time, texts, how many jobs were read, the place of the last one (false if
-- there are no more), and the places of those that match.

local filter, status, tag, after, most_listed, most_read = unpack(given)
after = after or nil
local reader = reader_of(status, tag, after, filter[1])

-- Returns whether the job is still where the entry was. Entries of ready jobs may be stale.
local function is_current(job, place)
  return not status or job[F.status] == status and (status ~= S.READY or due_of(job) == place[3] and job[F.seq] == place[4])
end

-- Many entries may belong to jobs that do not match: succeeded and cancelled jobs share an index, and held, scheduled and running ones of
-- all queues do. The beginning of a record shows that, so that it need not be decoded.
local other = ({ [S.SUCCEEDED] = S.CANCELLED, [S.CANCELLED] = S.SUCCEEDED })[status or 0]
local has_all_queues = status == S.HELD or status == S.SCHEDULED or status == S.RUNNING
local queue = has_all_queues and filter[1] and tonumber(call('HGET', P .. 'names', 'q:' .. filter[1])) or nil
local name = filter[2] and tonumber(call('HGET', P .. 'names', 'j:' .. filter[2])) or nil
local queue_bytes, queue_packed = queue and struct.pack('>I4', queue), queue and cmsgpack.pack(queue)
local name_bytes = name and struct.pack('>I4', name)

local function begins_otherwise(stored)
  local first, at = byte(stored), 1
  if #stored < L.running + 2 then
    return false
  elseif first > S.SUCCEEDED then -- an array, of which the status and the queue are the first fields
    at = first == 220 and 4 or 2
    return byte(stored, at) == other or (queue and sub(stored, at + 1, at + #queue_packed) ~= queue_packed)
  elseif first >= S.RUNNING then
    at = L.running + 2 + struct.unpack('>I2', stored, L.running)
  end
  return first == other or (queue and sub(stored, at + 2, at + 5) ~= queue_bytes) or (name and sub(stored, at + 6, at + 9) ~= name_bytes)
end

local function pass_over_others(ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. 'j:' .. id
  end
  for i, stored in ipairs(call('MGET', unpack(keys))) do
    if stored and begins_otherwise(stored) then
      cache[ids[i]] = false
    end
  end
end

local reply, places, numbers, examined, last, is_match = { '' }, {}, {}, 0, false, matcher(filter)
local function is_full()
  return #places == most_listed or examined == most_read
end

-- Lists the jobs that match, until the page is full.
local function list_matching(entries)
  local ids = {}
  for i, entry in ipairs(entries) do
    ids[i] = entry[1]
  end
  if (other or queue or name) and #ids > 0 then
    pass_over_others(ids)
  end
  prefetch(ids)
  for _, entry in ipairs(entries) do
    local id, place = unpack(entry)
    local job = load(id)
    examined, last = examined + 1, place
    if job and is_current(job, place) and is_match(job) then
      reply[#reply + 1] = id
      reply[#reply + 1] = cmsgpack.pack(job)
      places[#places + 1] = place
      numbers[job[F.queue]], numbers[job[F.name]] = true, true
    end
    if is_full() then
      return
    end
  end
end

repeat
  local entries = reader(math.min(most_read - examined, math.max(most_listed, 25)))
  list_matching(entries)
until #entries == 0 or is_full()
reply[1] = cmsgpack.pack({ wall, texts_of(numbers), examined, is_full() and last, places })
return reply
