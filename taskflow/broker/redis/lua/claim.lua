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

-- What one answer holds at most, about: a worker that asks for hundreds of large jobs gets them in portions.
local MOST_BYTES = 1048576
local bytes = 0

local function is_going_on()
  return asked < limit and patience > 0 and bytes < MOST_BYTES
end

local function tell(id, stored, job)
  reply[#reply + 1] = id
  reply[#reply + 1] = stored
  numbers[job[F.queue]], numbers[job[F.name]] = true, true
end

local function answer_again()
  local given_then = leases_of(session, nil, function(tail)
    return request_of(tail) == request
  end)
  for _, lease in ipairs(given_then) do
    local job = leased(session, lease[1], lease[2])
    if job then
      tell(lease[2], cmsgpack.pack(job), job)
    end
  end
end

local name
local leases, values = {}, {}

local function lease(id, job)
  local tail = struct.pack('>I6I2', request, asked)
  asked = asked + 1
  job[F.status] = S.RUNNING
  if #job == F.payload then -- its first run: five fields more
    job[F.epoch], job[F.claim], job[F.claimed], job[F.claimed_steady], job[F.worker] = 1, session .. tail, wall, steady, name
  else
    set(job, F.epoch, (job[F.epoch] or 0) + 1)
    set(job, F.claim, session .. tail)
    set(job, F.claimed, wall)
    set(job, F.claimed_steady, steady)
    set(job, F.worker, name)
    for _, field in ipairs({ F.started, F.progress, F.waiting_for }) do
      if job[field] then
        job[field] = false
      end
    end
  end
  local stored = cmsgpack.pack(job)
  leases[#leases + 1] = tail
  leases[#leases + 1] = id
  values[#values + 1] = P .. 'j:' .. id
  values[#values + 1] = stored
  bytes = bytes + #stored
  cache[id] = job
  tell(id, stored, job)
end

-- Leases what stands at these entries, until there are bytes enough; those that have expired are given back, and left to upkeep.
-- How many entries were looked at, and how many of them leased.
local function lease_all(entries, passed_over)
  local ids, taken = {}, 0
  for i, entry in ipairs(entries) do
    ids[i] = id_in(entry)
  end
  prefetch(ids)
  for i, entry in ipairs(entries) do
    local job = cache[ids[i]]
    if not job or job[F.status] ~= S.READY or due_of(job) ~= time_of(entry) then
      patience = patience - 1
    elseif job[F.expires] and job[F.expires] <= wall then
      patience = patience - 10
      passed_over[#passed_over + 1] = entry
    else
      lease(ids[i], job)
      taken = taken + 1
      if bytes >= MOST_BYTES then
        return i, taken
      end
    end
  end
  return #entries, taken
end

-- Small pages first: what they hold may be large.
local function take_place(queue, place, passed_over)
  local list, returned = ready_keys(place)
  local taken, page = 0, 10
  while is_going_on() do
    local entries, is_listed = peek(list, returned, math.min(page, limit - asked))
    if #entries == 0 then
      break
    end
    local looked_at, leased_now = lease_all(entries, passed_over)
    drop_first(list, returned, looked_at, is_listed)
    taken = taken + leased_now
    page = math.min(4 * page, 200)
  end
  return taken
end

local function take(queue)
  local taken = 0
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local place, passed_over = queue .. ':' .. priority, {}
    local list, returned = ready_keys(place)
    taken = taken + take_place(queue, place, passed_over)
    for _, entry in ipairs(passed_over) do
      call('ZADD', returned, 0, entry)
    end
    if call('EXISTS', list, returned) == 0 then
      call('ZREM', P .. 'p:' .. queue, priority)
    end
    if not is_going_on() then
      break
    end
  end
  if taken > 0 then
    count(queue, S.READY, -taken)
    count(queue, S.RUNNING, taken)
    tally(queue, E.CLAIM, taken)
  end
end

local function number_of(queue_name)
  return call('HGET', P .. 'names', 'q:' .. queue_name)
end

local function take_named()
  for _, queue_name in ipairs(queues) do
    local number = is_going_on() and number_of(queue_name)
    if number and call('SISMEMBER', P .. 'paused', queue_name) == 0 then
      take(tonumber(number))
    end
  end
end

-- Beginning with another queue at each request, a page at a time.
local function take_any()
  local names = call('ZCARD', P .. 'ready')
  local turn = names > 0 and request % names or 0
  for _, span in ipairs({ { turn, names - 1 }, { 0, turn - 1 } }) do
    local first = span[1]
    while first <= span[2] and is_going_on() do
      for _, queue_name in ipairs(call('ZRANGE', P .. 'ready', first, math.min(first + 63, span[2]))) do
        if is_going_on() then
          take(tonumber(number_of(queue_name)))
        end
      end
      first = first + 64
    end
  end
end

-- Who has found nothing is told when there is something again.
local is_armed = false

local function arm()
  is_armed = true
  if #queues == 0 then
    call('SADD', P .. 'armed', 'queues')
  end
  for _, queue_name in ipairs(queues) do
    call('SADD', P .. 'armed', 'queue:' .. queue_name)
  end
end

local function claim()
  if #queues > 0 then
    take_named()
  else
    take_any()
  end
  if asked == 0 and limit > 0 and patience > 0 then
    arm()
  end
  call('HSET', session_key(session), 'request', request)
  in_portions('HSET', P .. 'l:' .. session, leases)
  for first = 1, #values, MOST do
    call('MSET', unpack(values, first, math.min(first + MOST - 1, #values)))
  end
  flush()
end

if not is_alive(session) then
  return redis.status_reply('LOST')
end
local about = call('HMGET', session_key(session), 'request', 'name')
local last = tonumber(about[1] or 0)
name = about[2] or '?' -- where what was told of the session has been lost
if request > last then
  claim()
elseif request == last then
  answer_again()
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers), is_armed })
return reply
