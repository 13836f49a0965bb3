-- === script claim ==========================================================================================
-- Leases ready jobs to a session.
--
-- arguments  revision, session, request (a number, and 8 bytes), the names of queues in order (none: all), limit, the listener, whether it is
--            on the lists of listeners that wait for jobs
-- reply      "LOST", or: the server's time; whether the session will get a wake-up for new jobs; ids and queues
--            of jobs that cannot be read, alternating; id, record, id, record, ...

local rev, session, request, claim_head, queues, limit, listener, is_listed = unpack(given)
local unreadable = {}
local reply, leased_count = { wall, 0, unreadable }, 0
-- The maximum number of stale entries that one call skips.
local skips_left = 5000

-- The size of a reply in bytes, with content stored separately, after which no more jobs are leased, so that large jobs come in portions.
local MAX_BYTES = 1048576
local bytes = 0

local function has_room()
  return leased_count < limit and skips_left > 0 and bytes < MAX_BYTES
end

local about = call('MGET', P .. 's:' .. session, P .. 'r:' .. session)
if not about[1] then
  return redis.status_reply('LOST')
end
local is_read, its = pcall(function()
  return cmsgpack.unpack(sub(about[1], 14, 13 + struct.unpack('>I4', about[1], 10)))
end)
if not is_read or type(its) ~= 'table' or its[F.dead_at] or type(its[F.name]) ~= 'string' then
  return redis.status_reply('LOST')
end
local worker, last = its[F.name], about[2] and dec(sub(about[2], 1, 8)) or 0
local leases, values = {}, {}
local is_leased = {} -- records are written at the end, and an entry can occur twice
local lease_other, repeat_claim

-- The bytes that all leases of this call share in the fixed layout.
local first_of = char(F.running_status) .. rev .. struct.pack('>I8', 1) .. session .. claim_head
local now = enc(wall)
local since = now .. enc(steady) .. struct.pack('>I2', #worker) .. worker
local left_over -- the name of a queue that may have more ready jobs

local admitted = {} -- members of the index `holding`

-- Returns the record to store; false if the entry is stale, nil if the job has expired.
local function lease(entry, id, stored, tail, queue, priority)
  if is_leased[id] then
    return false
  elseif byte(stored) == F.ready_status and #stored >= L.waiting and #stored <= MAX_RECORD then
    local flags, its_priority, place, length, name = struct.unpack('>I2Bc16xxxxxxxxI2I2', stored, 10)
    if place ~= sub(entry, 1, 16) then
      return false
    elseif (bit.band(flags, bit.bnot(G.MEMBER)) < G.MARKED or bit.band(flags, bit.bnot(G.LIMITED + G.MANY_GATES)) < G.MARKED)
      and its_priority == priority + 128 and length == #queue
      and sub(stored, L.waiting + 1, L.waiting + length) == queue then
      if bit.band(flags, G.LIMITED) ~= 0 then
        local since_at = L.waiting + length + name + 1
        admitted[#admitted + 1] = esc(queue) .. sub(stored, since_at, since_at + 7) .. sub(place, 9) .. id
      end
      return first_of .. tail .. since .. stored
    end
  end
  if not lease_other then
    lease_other, repeat_claim = load_rest(rev, session, unreadable)
  end
  return lease_other(id, stored, entry, queue, priority, claim_head .. tail, worker)
end

-- Leases the jobs of these entries until the reply is large enough. Adds entries of expired jobs, which upkeep ends, to `passed_over`.
-- Returns how many entries it checked, and how many jobs it leased.
local function lease_all(entries, passed_over, queue, priority)
  local keys, ids, before, job_key = {}, {}, leased_count, P .. 'j:'
  for i, entry in ipairs(entries) do
    ids[i] = sub(entry, 17)
    keys[i] = job_key .. ids[i]
  end
  local found = call('MGET', unpack(keys))
  for i, entry in ipairs(entries) do
    local stored, id = false, ids[i]
    local tail = struct.pack('>I4', leased_count)
    if found[i] then
      stored = lease(entry, id, found[i], tail, queue, priority)
    end
    if stored then
      local n = 2 * leased_count
      leases[n + 1], leases[n + 2] = claim_head .. tail, id
      values[n + 1], values[n + 2] = keys[i], stored
      reply[n + 4], reply[n + 5] = id, stored
      leased_count, bytes, is_leased[id] = leased_count + 1, bytes + #stored, true
      if byte(stored, -L.reference) == 255 and sub(stored, -L.reference, 1 - L.reference) == L.mark then
        bytes = bytes + struct.unpack('>I4', stored, 3 - L.reference + #stored)
      end
      if bytes >= MAX_BYTES then
        return i, leased_count - before
      end
    elseif stored == nil then
      skips_left = skips_left - 10
      passed_over[#passed_over + 1] = entry
    else
      skips_left = skips_left - 1
    end
  end
  return #entries, leased_count - before
end

-- The first pages are small, because the jobs may be large.
local function take_from_place(queue, priority, passed_over)
  local taken, page, place = 0, 10, priority .. ':' .. queue
  while has_room() do
    local wanted = math.min(page, limit - leased_count)
    local entries, is_listed_here = peek(place, wanted)
    if #entries > 0 then
      local looked_at, leased_now = lease_all(entries, passed_over, queue, tonumber(priority))
      drop_first(place, looked_at, is_listed_here)
      taken = taken + leased_now
    end
    if #entries < wanted then
      break
    end
    page = math.min(4 * page, 200)
  end
  return taken
end

local function take_from_queue(queue)
  local taken = 0
  for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
    local passed_over = {}
    taken = taken + take_from_place(queue, priority, passed_over)
    add_members(P .. 'back:' .. priority .. ':' .. queue, passed_over)
    if not has_room() then
      left_over = queue
      break
    elseif #passed_over == 0 then
      call('ZREM', P .. 'priorities:' .. queue, priority)
    end
  end
  if taken > 0 then
    change_ready(queue, -taken)
    call('HINCRBY', P .. 'counts', F.running_status .. queue, taken)
    call('HINCRBY', P .. 'totals', E.CLAIM .. ':' .. queue, taken)
  end
end

-- Redis stores a hash of a few hundred short fields as one string, which each look-up scans. This took a third of a claim's time. A single
-- long value converts it to a hash table, and it remains one until it is empty.
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
  call('ZADD', P .. 'lessees', 0, session)
end

local is_new = request > last
if request == last and about[2] then
  lease_other, repeat_claim = load_rest(rev, session, unreadable)
  repeat_claim(reply, session, claim_head)
end
if is_new and #queues > 0 then
  local seen = {}
  for _, queue in ipairs(queues) do
    if has_room() and not seen[queue] and call('EXISTS', P .. 'q:' .. queue) == 0 then
      take_from_queue(queue)
    end
    seen[queue] = true
  end
elseif is_new then
  -- All queues, a page at a time. Each request begins with a different queue.
  local names = call('ZCARD', P .. 'ready')
  local turn = names > 0 and request % names or 0
  for _, span in ipairs({ { turn, names - 1 }, { 0, turn - 1 } }) do
    local found = {}
    for first = span[1], span[2], 64 do -- read before any of them is removed
      for _, queue in ipairs(call('ZRANGE', P .. 'ready', first, math.min(first + 63, span[2]))) do
        found[#found + 1] = queue
      end
      if #found >= 10 * limit then
        break
      end
    end
    for _, queue in ipairs(found) do
      if has_room() then
        take_from_queue(queue)
      end
    end
  end
end

if is_new then
  call('SET', P .. 'r:' .. session, enc(request) .. listener)
end
if leased_count > 0 then
  write_leases()
  set_all(values)
  in_portions('ZREM', P .. 'i:holding', admitted)
end
if is_new and has_room() then
  -- The session found fewer jobs than it wanted, so its listener is nudged for the next ones.
  reply[2] = 1
  for _, name in ipairs(#queues > 0 and queues or { '' }) do
    add_listener(P .. 'waiting:' .. name, listener)
  end
else
  for _, name in ipairs(is_listed and (#queues > 0 and queues or { '' }) or {}) do
    call('ZREM', P .. 'waiting:' .. name, listener)
  end
  -- The claim may leave jobs in any of its queues, so another listener is nudged for them.
  local wanted = is_new and left_over and 1 or 0
  for _, name in ipairs(wanted > 0 and (#queues > 0 and queues or { left_over }) or {}) do
    wanted = wanted > 0 and nudge(name, wanted) or 0
  end
end
return reply

-- === part claim_others =====================================================================================
-- Leases jobs outside the fixed layout, and repeats the reply to a resent request.

-- Leases a job of any kind. Returns false if the entry is stale, nil if the job has expired. Adds unreadable jobs to `unreadable`.
local function lease_any(id, stored, entry, queue, priority, claim, worker)
  local is_read, header, sent, state, content = pcall(decode, stored)
  if not is_read or #stored > MAX_RECORD then
    unreadable[#unreadable + 1], unreadable[#unreadable + 2] = id, queue
    return false
  elseif header[F.status] ~= F.ready_status or header[F.due_at] .. header[F.seq] ~= sub(entry, 1, 16)
    or header[F.priority] ~= priority or header[F.queue] ~= queue and not is_spoilt(header[F.queue]) then
    return false
  end
  if header[F.expires_at] and dec(header[F.expires_at]) <= wall then
    return nil
  end
  local before = PLACES[K.JOB + 1](header, id)
  header[F.status], header[F.epoch] = F.running_status, enc(dec(header[F.epoch]) + 1)
  header[F.session], header[F.claim] = session, claim
  header[F.claimed_at], header[F.claimed_steady], header[F.started_at], header[F.worker] = enc(wall), enc(steady), false, worker
  local after = PLACES[K.JOB + 1](header, id)
  if table.concat(before) ~= table.concat(after) then
    for i = 1, #before, 2 do
      call('ZREM', P .. 'i:' .. before[i], before[i + 1])
    end
    for i = 1, #after, 2 do
      call('ZADD', P .. 'i:' .. after[i], 0, after[i + 1])
    end
  end
  return encode(K.JOB, rev, header, sent, state, content)
end

-- Adds the leases of this request to the reply, with their records.
local function give_again(answer, of_session, head)
  local stored, found = call('HGETALL', P .. 'leases:' .. of_session), {}
  for i = 1, #stored, 2 do
    if sub(stored[i], 1, 8) == head then
      found[#found + 1] = { struct.unpack('>I4', stored[i], 9), stored[i + 1] }
    end
  end
  table.sort(found, function(one, other)
    return one[1] < other[1]
  end)
  for _, each in ipairs(found) do
    local job = call('MGET', P .. 'j:' .. each[2])[1]
    if job then
      answer[#answer + 1], answer[#answer + 2] = each[2], job
    end
  end
end

return lease_any, give_again
