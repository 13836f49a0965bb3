-- === script claim ==========================================================================================
-- Leases ready jobs to a session.
--
-- arguments  session, request, the names of queues in order (none: all), limit, the listener, whether it is on the lists of those
--            that wait for jobs, whether it was nudged since its last claim
-- reply      "LOST", or: {the server's time, the texts of the numbers in the jobs, whether the session will get a wake-up for new
--            jobs, as msgpack; id, job, id, job, ...}

local session, request, queues, limit, listener, is_listed, was_nudged = unpack(given)
local reply, numbers = { '' }, {}
local leased_count = 0
-- The maximum number of stale entries that one call skips.
local skips_left = 5000

-- The size of a reply in bytes, including large payloads, after which no more jobs are leased: a worker gets many large jobs in
-- portions.
local MOST_BYTES = 1048576

-- How far a session can be ahead of a request that arrives late.
local MOST_AHEAD = 1000
local bytes = 0

local function has_room()
  return leased_count < limit and skips_left > 0 and bytes < MOST_BYTES
end

local session_key = P .. 'session:' .. session
local about = call('HMGET', session_key, 'request', 'name')
local worker = string.sub(about[2] or '?', 1, 1000) -- "?" if the session's hash has lost its name
local leases, values = {}, {}
local is_leased = {} -- records are written at the end, and an entry can occur twice
local lease_other, repeat_claim

-- The bytes that all leases of this call share in the fixed layout (fields.py), if it is the first lease of the job.
local first_of = string.char(S.RUNNING) .. struct.pack('>I4', 1) .. session
local since = struct.pack('>I8I8I2', wall, steady, #worker) .. worker
local last_queue, last_name
local queue_number, has_vanished -- the queue's number; whether a job was missing
local left_over -- the name of a queue that may have more ready jobs

local function lease_any(id, stored, entry, tail)
  if not lease_other then
    lease_other, repeat_claim = load_rest()
  end
  local leased, queue, name, more = lease_other(id, stored, entry, queue_number, session .. tail, worker)
  if leased then
    numbers[queue], numbers[name] = true, true
    bytes = bytes + more
  end
  return leased
end

-- Returns the record to store; false if the entry is stale, nil if the job has expired.
local function lease(entry, stored, tail)
  local size, time, seq, id = #stored, struct.unpack('>I8I6c16', entry)
  if is_leased[id] then
    return false
  elseif size < L.waiting + 5 or size > LARGEST then
    return lease_any(id, stored, entry, tail), id
  end
  local status, queue, name, due, its_seq, extras = struct.unpack('>BxI4I4I8I6xxxxxxxxI2', stored)
  local payload_at = L.waiting + 2 + extras
  if status ~= S.READY or due ~= time or its_seq ~= seq or size < payload_at + 3
    or struct.unpack('>I4', stored, payload_at) ~= size - payload_at - 3 then
    return lease_any(id, stored, entry, tail), id
  end
  if queue ~= last_queue or name ~= last_name then
    if queue ~= queue_number then
      return lease_any(id, stored, entry, tail), id
    end
    last_queue, last_name = queue, name
    numbers[queue], numbers[name] = true, true
  end
  if size == payload_at + 9 and sub(stored, payload_at + 4, payload_at + 5) == L.mark then
    bytes = bytes + struct.unpack('>I4', stored, payload_at + 6)
  end
  return first_of .. tail .. since .. stored, id
end

-- Leases the jobs of these entries until there are enough bytes. Adds entries of expired jobs, which upkeep ends, to `passed_over`.
-- Returns how many entries it looked at, and how many jobs it leased.
local function lease_all(entries, passed_over)
  local keys, before, job_key, missing = {}, leased_count, P .. 'j:', {}
  for i, entry in ipairs(entries) do
    keys[i] = job_key .. sub(entry, 15)
  end
  local found = call('MGET', unpack(keys)) -- MGET skips keys of a wrong type
  for i, entry in ipairs(entries) do
    local tail = struct.pack('>I6I2', request, leased_count)
    local stored, id = false, nil
    if found[i] then
      stored, id = lease(entry, found[i], tail)
    else
      missing[#missing + 1] = keys[i]
    end
    if stored then
      local n = 2 * leased_count
      leases[n + 1], leases[n + 2] = tail, id
      values[n + 1], values[n + 2] = keys[i], stored
      reply[n + 2], reply[n + 3] = id, stored
      leased_count, bytes, is_leased[id] = leased_count + 1, bytes + #stored, true
      if bytes >= MOST_BYTES then
        return i, leased_count - before
      end
    elseif stored == nil then
      skips_left = skips_left - 10
      passed_over[#passed_over + 1] = entry
    else
      skips_left = skips_left - 1
    end
  end
  has_vanished = has_vanished or #missing > 0
  if #missing > 0 and call('EXISTS', unpack(missing)) > 0 then
    for _, key in ipairs(missing) do
      lease_any(sub(key, #job_key + 1), false, nil, '')
    end
  end
  return #entries, leased_count - before
end

-- The first pages are small, because the jobs may be large.
local function take_from_list(list, returned, passed_over)
  local taken, page = 0, 10
  while has_room() do
    local wanted = math.min(page, limit - leased_count)
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

-- `queue` is the queue's number as text, as in keys.
local function take_from_queue(queue, queue_name)
  local taken, is_exhausted = 0, true
  queue_names[queue], queue_number, last_queue, has_vanished = queue_name, tonumber(queue), nil, false
  for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
    local passed_over = {}
    local list, returned = ready_keys(queue .. ':' .. priority)
    taken = taken + take_from_list(list, returned, passed_over)
    for _, entry in ipairs(passed_over) do
      call('ZADD', returned, 0, entry)
      is_exhausted = false
    end
    if not has_room() then
      is_exhausted, left_over = false, queue_name
      break
    elseif #passed_over == 0 then
      call('ZREM', P .. 'priorities:' .. queue, priority)
    end
  end
  if is_exhausted and has_vanished and tonumber(call('HGET', P .. 'counts', queue .. ':' .. S.READY) or 0) ~= taken then
    call('HDEL', P .. 'counts', 'whole') -- a ready job is missing: upkeep counts again
  end
  if taken > 0 then
    count(queue, S.READY, -taken)
    count(queue, S.RUNNING, taken)
    tally(queue, E.CLAIM, taken)
  end
end

-- Redis stores a hash of some hundred short fields as one string that each lookup reads through, which took a third of a claim's time.
-- One long value turns it into a table, which it stays until it is empty.
local function write_leases()
  local key = P .. 'leases:' .. session
  local is_many = leased_count > 4
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
if not (last <= request + MOST_AHEAD) then -- no session is this far ahead: the stored number is wrong
  last = 0
end
local is_new = request > last
if request == last then
  lease_other, repeat_claim = load_rest()
  reply, numbers = repeat_claim(session, request)
end

if is_new and #queues > 0 then
  for _, queue_name in ipairs(queues) do
    local number = has_room() and call('HGET', P .. 'names', 'q:' .. queue_name)
    if number and call('SISMEMBER', P .. 'paused', queue_name) == 0 then
      take_from_queue(number, queue_name)
    end
  end
elseif is_new then
  -- All queues, a page at a time. Each request begins with another queue.
  local names = call('ZCARD', P .. 'ready')
  local turn = names > 0 and request % names or 0
  for _, span in ipairs({ { turn, names - 1 }, { 0, turn - 1 } }) do
    local first = span[1]
    while first <= span[2] and has_room() do
      for _, queue_name in ipairs(call('ZRANGE', P .. 'ready', first, math.min(first + 63, span[2]))) do
        if has_room() then
          local number = call('HGET', P .. 'names', 'q:' .. queue_name)
          if number then
            take_from_queue(number, queue_name)
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
  call('HSET', session_key, 'request', request, 'listener', listener)
end
if was_nudged then
  call('ZREM', P .. 'nudged', listener)
end
if leased_count > 0 then
  write_leases()
  set_all(values)
  write_counts()
end
if is_new and has_room() then
  -- The session found fewer jobs than it wanted, so its listener is nudged for the next.
  is_armed = true
  for _, name in ipairs(#queues > 0 and queues or { '' }) do
    call('ZREMRANGEBYSCORE', P .. 'waiting:' .. name, '-inf', wall - R.gone_after)
    call('ZADD', P .. 'waiting:' .. name, wall, listener)
  end
else
  if is_listed then
    for _, name in ipairs(#queues > 0 and queues or { '' }) do
      call('ZREM', P .. 'waiting:' .. name, listener)
    end
  end
  -- It may leave jobs in any of its queues: another listener is nudged for them.
  local names = #queues > 0 and queues or { left_over }
  local lists = { P .. 'waiting:' }
  for i, name in ipairs(names) do
    lists[i + 1] = P .. 'waiting:' .. name
  end
  if is_new and left_over and call('EXISTS', unpack(lists)) > 0 then
    local _, _, nudge_for_ready = load_rest()
    nudge_for_ready(1, #queues > 0 and queues or nil)
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers), is_armed })
return reply

-- === part claim_others =====================================================================================
-- Leases of jobs outside the fixed layout, and the repeated reply to a resent request.

-- Leases a job of any kind. Returns false if the entry is stale, nil if the job has expired (upkeep ends it). Otherwise returns the
-- record to store, the numbers of its queue and name, and the size of a payload stored apart. `stored` is false if MGET did not find
-- the key.
local function lease_other(id, stored, entry, queue, claim, worker)
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
    if job[F.status] < S.READY and due_of(job) == struct.unpack('>I8', entry) then -- the entry says ready: the index and the job disagree
      recount()
    end
    return false
  elseif job[F.queue] ~= queue then
    report_spoilt(id, { F.queue, 'it is in the list of another queue', S.READY, queue })
    return false
  end
  if job[F.expires_at] and job[F.expires_at] <= wall then
    return nil
  end
  job[F.status] = S.RUNNING
  set(job, F.epoch, (job[F.epoch] or 0) + 1)
  set(job, F.claim, claim)
  set(job, F.claimed_at, wall)
  set(job, F.claimed_steady, steady)
  set(job, F.worker, worker)
  for _, field in ipairs({ F.cleared_by_claim }) do
    if job[field] then
      job[field] = false
    end
  end
  return cmsgpack.pack(job), job[F.queue], job[F.name], size_apart(job[F.payload]) or 0
end

-- Returns the reply to this request again, from the session's leases: id, job, id, job, ... and the numbers in them.
local function repeat_claim(session, request)
  local again, numbers = { '' }, {}
  local given_then = leases_of(session, nil, function(tail)
    return request_of(tail) == request
  end)
  for _, lease in ipairs(given_then) do
    local job = leased(session, lease[1], lease[2])
    if job then
      again[#again + 1] = lease[2]
      again[#again + 1] = cmsgpack.pack(job)
      numbers[job[F.queue]], numbers[job[F.name]] = true, true
    end
  end
  return again, numbers
end

return lease_other, repeat_claim, nudge_for_ready
