-- === script claim ==========================================================================================

-- Leases ready jobs to a session.
--
-- arguments  session, request, the names of queues in order (none: all), limit
-- reply      "LOST", or: {the server's time, the texts of the numbers in the jobs, and whether the session will be told of new
--            jobs, as msgpack; id, job, id, job, ...}

local session, request, queues, limit = given[1], given[2], given[3], given[4]
local reply, numbers = { '' }, {}
local asked = 0
-- Entries that nobody stands at any more which one call passes over at most.
local patience = 5000

-- What one answer brings at most, about, with the payloads that are kept apart: a worker that asks for hundreds of large jobs gets them
-- in portions.
local MOST_BYTES = 1048576

-- Requests that a session can have made since the one that arrives only now.
local MOST_AHEAD = 1000
local bytes = 0

local function is_going_on()
  return asked < limit and patience > 0 and bytes < MOST_BYTES
end

local session_key = P .. 's:' .. session
local about = call('HMGET', session_key, 'request', 'name')
local worker = string.sub(about[2] or '?', 1, 1000) -- where what was told of the session has been lost
local leases, values = {}, {}
local is_leased = {} -- what is stored is written at the end; an entry may be there twice
local lease_again, answer_again

-- Of jobs in the fixed layout (fields.py), what all that are leased for the first time have alike.
local first_of = string.char(S.RUNNING) .. struct.pack('>I4', 1) .. session
local since = struct.pack('>I8I8I2', wall, steady, #worker) .. worker
local last_queue, last_name
local taking, has_vanished -- the queue's number; whether a job was not there

local function lease_anew(id, stored, entry, tail)
  if not lease_again then
    lease_again, answer_again = the_rest()
  end
  local anew, queue, name, more = lease_again(id, stored, entry, taking, session .. tail, worker)
  if anew then
    numbers[queue], numbers[name] = true, true
    bytes = bytes + more
  end
  return anew
end

-- As it is stored then; false when nobody stands at the entry any more, nil when the job has expired.
local function lease(entry, stored, tail)
  local size, time, seq, id = #stored, struct.unpack('>I8I6c16', entry)
  if is_leased[id] then
    return false
  elseif size < L.waiting + 5 or size > LARGEST then
    return lease_anew(id, stored, entry, tail), id
  end
  local status, queue, name, due, its_seq, extras = struct.unpack('>BxI4I4I8I6xxxxxxxxI2', stored)
  local payload_at = L.waiting + 2 + extras
  if status ~= S.READY or due ~= time or its_seq ~= seq or size < payload_at + 3
    or struct.unpack('>I4', stored, payload_at) ~= size - payload_at - 3 then
    return lease_anew(id, stored, entry, tail), id
  end
  if queue ~= last_queue or name ~= last_name then
    if queue ~= taking then
      return lease_anew(id, stored, entry, tail), id
    end
    last_queue, last_name = queue, name
    numbers[queue], numbers[name] = true, true
  end
  if size == payload_at + 9 and sub(stored, payload_at + 4, payload_at + 5) == L.mark then
    bytes = bytes + struct.unpack('>I4', stored, payload_at + 6)
  end
  return first_of .. tail .. since .. stored, id
end

-- Leases what stands at these entries, until there are bytes enough; those that have expired are given back, and left to upkeep.
-- How many entries were looked at, and how many of them leased.
local function lease_all(entries, passed_over)
  local keys, before, job_key, missing = {}, asked, P .. 'j:', {}
  for i, entry in ipairs(entries) do
    keys[i] = job_key .. sub(entry, 15)
  end
  local found = call('MGET', unpack(keys)) -- it passes over a key of a wrong type
  for i, entry in ipairs(entries) do
    local tail = struct.pack('>I6I2', request, asked)
    local stored, id = false, nil
    if found[i] then
      stored, id = lease(entry, found[i], tail)
    else
      missing[#missing + 1] = keys[i]
    end
    if stored then
      local n = 2 * asked
      leases[n + 1], leases[n + 2] = tail, id
      values[n + 1], values[n + 2] = keys[i], stored
      reply[n + 2], reply[n + 3] = id, stored
      asked, bytes, is_leased[id] = asked + 1, bytes + #stored, true
      if bytes >= MOST_BYTES then
        return i, asked - before
      end
    elseif stored == nil then
      patience = patience - 10
      passed_over[#passed_over + 1] = entry
    else
      patience = patience - 1
    end
  end
  has_vanished = has_vanished or #missing > 0
  if #missing > 0 and call('EXISTS', unpack(missing)) > 0 then
    for _, key in ipairs(missing) do
      lease_anew(sub(key, #job_key + 1), false, nil, '')
    end
  end
  return #entries, asked - before
end

-- Small pages first: what they hold may be large.
local function take_place(list, returned, passed_over)
  local taken, page = 0, 10
  while is_going_on() do
    local wanted = math.min(page, limit - asked)
    local entries, is_listed = peek(list, returned, wanted)
    if #entries > 0 then
      local looked_at, leased_now = lease_all(entries, passed_over)
      drop_first(list, returned, looked_at, is_listed)
      taken = taken + leased_now
    end
    if #entries < wanted then
      break
    end
    page = math.min(4 * page, 200)
  end
  return taken
end

-- The queue's number as text: it goes into keys.
local function take(queue, queue_name)
  local taken, is_exhausted = 0, true
  told_names[queue], taking, last_queue, has_vanished = queue_name, tonumber(queue), nil, false
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local passed_over = {}
    local list, returned = ready_keys(queue .. ':' .. priority)
    taken = taken + take_place(list, returned, passed_over)
    for _, entry in ipairs(passed_over) do
      call('ZADD', returned, 0, entry)
      is_exhausted = false
    end
    if not is_going_on() then
      is_exhausted = false
      break
    elseif #passed_over == 0 then
      call('ZREM', P .. 'p:' .. queue, priority)
    end
  end
  if is_exhausted and has_vanished and tonumber(call('HGET', P .. 'counts', queue .. ':' .. S.READY) or 0) ~= taken then
    call('HDEL', P .. 'counts', 'whole') -- it was ready: upkeep counts anew
  end
  if taken > 0 then
    count(queue, S.READY, -taken)
    count(queue, S.RUNNING, taken)
    tally(queue, E.CLAIM, taken)
  end
end

-- Redis keeps a hash of some hundred short fields as one string, which each lookup reads through: a third of a claim's time. A long
-- value makes a table of it, which it stays until it is empty.
local function write_leases()
  local key = P .. 'l:' .. session
  local is_many = asked > 4
  if is_many then
    call('HSET', key, '', string.rep(' ', 65))
  end
  in_portions('HSET', key, leases)
  if is_many then
    call('HDEL', key, '')
  end
end

if not call('ZSCORE', P .. 'alive', session) then
  return redis.status_reply('LOST')
end
local last, is_armed = tonumber(about[1]) or 0, false
if not (last <= request + MOST_AHEAD) then -- no session asks so often: what was stored is not what it asked for last
  last = 0
end
local is_new = request > last
if request == last then
  lease_again, answer_again = the_rest()
  reply, numbers = answer_again(session, request)
end

if is_new and #queues > 0 then
  for _, queue_name in ipairs(queues) do
    local number = is_going_on() and call('HGET', P .. 'names', 'q:' .. queue_name)
    if number and call('SISMEMBER', P .. 'paused', queue_name) == 0 then
      take(number, queue_name)
    end
  end
elseif is_new then
  -- Beginning with another queue at each request, a page at a time.
  local names = call('ZCARD', P .. 'ready')
  local turn = names > 0 and request % names or 0
  for _, span in ipairs({ { turn, names - 1 }, { 0, turn - 1 } }) do
    local first = span[1]
    while first <= span[2] and is_going_on() do
      for _, queue_name in ipairs(call('ZRANGE', P .. 'ready', first, math.min(first + 63, span[2]))) do
        if is_going_on() then
          local number = call('HGET', P .. 'names', 'q:' .. queue_name)
          if number then
            take(number, queue_name)
          else
            call('ZREM', P .. 'ready', queue_name)
          end
        end
      end
      first = first + 64
    end
  end
end

if is_new then
  call('HSET', session_key, 'request', request)
end
if asked > 0 then
  write_leases()
  set_all(values)
  write_counts()
end
if is_new and is_going_on() then
  -- Who has found no more is told when there is something again.
  is_armed = true
  if #queues == 0 then
    call('SADD', P .. 'armed', 'queues')
  end
  for _, queue_name in ipairs(queues) do
    call('SADD', P .. 'armed', 'queue:' .. queue_name)
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers), is_armed })
return reply

-- === part claim_others =====================================================================================

-- What a claim has to do with jobs that are more than the fixed layout holds, or that it has leased before.

-- Changes the job for its next run. False when nobody stands at the entry any more, nil when it has expired, and is left to upkeep;
-- else what is stored, the numbers of its queue and name, and how large a payload is that is kept apart. `stored` is false for a key
-- that MGET has not found.
local function lease_again(id, stored, entry, queue, claim, worker)
  if stored then
    cache[id] = parse(id, stored)
  end
  local job, note = load(id), stand_ins[id]
  if note then
    note[3], note[4] = note[3] or S.READY, note[4] or queue
    report_spoilt(id, note)
    return false
  elseif not job then
    return false
  elseif job[F.status] ~= S.READY or due_of(job) ~= struct.unpack('>I8', entry) then
    if job[F.status] < S.READY and due_of(job) == struct.unpack('>I8', entry) then -- it was ready: somebody else has made it wait
      recount()
    end
    return false
  elseif job[F.queue] ~= queue then
    report_spoilt(id, { F.queue, 'it stands in the list of another queue', S.READY, queue })
    return false
  end
  if job[F.expires] and job[F.expires] <= wall then
    return nil
  end
  job[F.status] = S.RUNNING
  set(job, F.epoch, (job[F.epoch] or 0) + 1)
  set(job, F.claim, claim)
  set(job, F.claimed, wall)
  set(job, F.claimed_steady, steady)
  set(job, F.worker, worker)
  for _, field in ipairs({ F.started, F.progress, F.waiting_for }) do
    if job[field] then
      job[field] = false
    end
  end
  return cmsgpack.pack(job), job[F.queue], job[F.name], size_apart(job[F.payload]) or 0
end

-- What this request was answered before: id, job, id, job, ... and the numbers in them.
local function answer_again(session, request)
  local told, numbers = { '' }, {}
  local given_then = leases_of(session, nil, function(tail)
    return request_of(tail) == request
  end)
  for _, lease in ipairs(given_then) do
    local job = leased(session, lease[1], lease[2])
    if job then
      told[#told + 1] = lease[2]
      told[#told + 1] = cmsgpack.pack(job)
      numbers[job[F.queue]], numbers[job[F.name]] = true, true
    end
  end
  return told, numbers
end

return lease_again, answer_again
