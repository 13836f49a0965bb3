-- Jobs as they are read, changed and written once at the end; counts and nudges likewise.

local cache, changed = {}, {}
local moves, events = {}, {}
local rung, rung_jobs = {}, {}

-- --- reading and writing ------------------------------------------------------------------------------

-- The fields that are strings, where there are any; all others are numbers.
local STRINGS = {}
for _, field in ipairs({ F.payload, F.claim, F.worker, F.settled, F.result, F.extras, F.key, F.joins, F.behind, F.errors, F.progress,
  F.cancel_requested, F.reason, F.waiting_for }) do
  STRINGS[field] = true
end

-- So that no step that follows stumbles over a value of a kind that it does not know, and stops with it the claims of all.
local function is_job(job)
  if type(job) ~= 'table' then
    return false
  end
  for field = 1, #job do
    local value = job[field]
    if value and type(value) ~= (STRINGS[field] and 'string' or 'number') then
      return false
    end
  end
  local status = job[F.status]
  return status and job[F.queue] and job[F.name] and job[F.priority] and job[F.seq] and job[F.created]
    and (status ~= S.RUNNING or (job[F.epoch] and job[F.claim] and #job[F.claim] == 24 and job[F.claimed_steady]))
    and (status ~= S.SCHEDULED or job[F.due])
    and (status < S.SUCCEEDED or (job[F.ended] and (status == S.GONE or job[F.keep_until])))
end

-- What does not read as a job is put aside, once, and is not there any more: one bad value stops nobody.
local function parse(id, stored)
  if not stored then
    return false
  end
  local is_whole, job = pcall(cmsgpack.unpack, stored)
  if is_whole and is_job(job) then
    return job
  end
  call('HSET', P .. 'bad', id, stored)
  call('DEL', P .. 'j:' .. id)
  return false
end

-- MGET, since it passes over a key of a wrong type.
local function prefetch(ids)
  local keys, asked = {}, {}
  for _, id in ipairs(ids) do
    if cache[id] == nil then
      cache[id] = false
      asked[#asked + 1] = id
      keys[#keys + 1] = P .. 'j:' .. id
    end
  end
  for first = 1, #keys, MOST do
    local last = math.min(first + MOST - 1, #keys)
    for i, stored in ipairs(call('MGET', unpack(keys, first, last))) do
      cache[asked[first + i - 1]] = parse(asked[first + i - 1], stored)
    end
  end
end

-- The job, or false.
local function load(id)
  if cache[id] == nil then
    prefetch({ id })
  end
  return cache[id]
end

-- Sets a field, without a hole before it: cmsgpack would take the array for a map.
local function set(job, field, value)
  for i = #job + 1, field - 1 do
    job[i] = false
  end
  job[field] = value
end

local function save(id, job)
  cache[id] = job
  changed[id] = job
end

local function write_jobs()
  local values = {}
  for id, job in pairs(changed) do
    values[#values + 1] = P .. 'j:' .. id
    values[#values + 1] = cmsgpack.pack(job)
  end
  for first = 1, #values, MOST do
    call('MSET', unpack(values, first, math.min(first + MOST - 1, #values)))
  end
  changed = {}
end

local function is_waiting(job)
  return job[F.status] <= S.READY
end

local function has_ended(job)
  return job[F.status] >= S.SUCCEEDED and job[F.status] <= S.CANCELLED
end

local function is_kept(job)
  return job[F.status] ~= S.GONE and not (has_ended(job) and job[F.keep_until] <= wall)
end

local function due_of(job)
  return job[F.due] or job[F.created]
end

-- "01890a5d-ac96-774b-bcce-b302099a8057"
local function id_text(id)
  local hex = string.gsub(id, '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
  return table.concat({
    string.sub(hex, 1, 8), string.sub(hex, 9, 12), string.sub(hex, 13, 16), string.sub(hex, 17, 20), string.sub(hex, 21),
  }, '-')
end

-- --- counts -------------------------------------------------------------------------------------------

local function count(queue, status, number)
  local of_queue = moves[queue]
  if not of_queue then
    of_queue = {}
    moves[queue] = of_queue
  end
  of_queue[status] = (of_queue[status] or 0) + number
end

local function tally(queue, event, number)
  local of_queue = events[queue]
  if not of_queue then
    of_queue = {}
    events[queue] = of_queue
  end
  of_queue[event] = (of_queue[event] or 0) + (number or 1)
end

-- Every change of status goes through here. GONE and false are not counted: nobody is there.
local function move(job, event, to)
  local queue, from = job[F.queue], job[F.status]
  if from and from ~= S.GONE then
    count(queue, from, -1)
  end
  if to ~= S.GONE then
    count(queue, to, 1)
  end
  job[F.status] = to
  tally(queue, event)
end

-- ready: the queues, by name, that have ready jobs and are not paused.
local function index_ready(queue, number, now_ready)
  if now_ready == 0 then
    call('ZREM', P .. 'ready', name_of(queue))
    for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do -- entries at which nobody stands any more
      call('UNLINK', P .. 'r:' .. queue .. ':' .. priority, P .. 'z:' .. queue .. ':' .. priority)
    end
    call('DEL', P .. 'p:' .. queue)
  elseif now_ready == number then
    local name = name_of(queue)
    if call('SISMEMBER', P .. 'paused', name) == 0 then
      call('ZADD', P .. 'ready', 0, name)
    end
  end
end

-- crowded: the queues, by name, that keep more than they may; "\1" sorts before whatever a name has.
local function index_crowded(queue, failed)
  local kept = 0
  local codes = failed == 1 and { S.FAILED } or { S.SUCCEEDED, S.CANCELLED }
  for _, code in ipairs(codes) do
    kept = kept + (call('HGET', P .. 'counts', queue .. ':' .. code) or 0)
  end
  if kept > R.kept_per_queue then
    call('ZADD', P .. 'crowded', 0, name_of(queue) .. '\1' .. failed)
  end
end

local function write_counts()
  for queue, of_queue in pairs(moves) do
    for status, number in pairs(of_queue) do
      if number ~= 0 then
        local now = call('HINCRBY', P .. 'counts', queue .. ':' .. status, number)
        if now < 0 then  -- some have been lost: as a wrong type it makes the caller have all counted again (broker.py)
          error('WRONGTYPE the counts of jobs have been lost')
        end
        if status == S.READY then
          index_ready(queue, number, now)
        end
      end
    end
    if (of_queue[S.FAILED] or 0) > 0 then
      index_crowded(queue, 1)
    end
    if (of_queue[S.SUCCEEDED] or 0) > 0 or (of_queue[S.CANCELLED] or 0) > 0 then
      index_crowded(queue, 0)
    end
  end
  for queue, of_queue in pairs(events) do
    for event, number in pairs(of_queue) do
      call('HINCRBY', P .. 'totals', queue .. ':' .. event, number)
    end
  end
  moves, events = {}, {}
end

-- --- nudges -------------------------------------------------------------------------------------------

-- armed: the topics that somebody has found nothing under, and waits for. Only those are told, once: a busy
-- fleet would otherwise hear of every job of every other worker.
local function tell_armed()
  local topics = {}
  for topic in pairs(rung) do
    topics[#topics + 1] = topic
  end
  local told = 0
  for first = 1, #topics, MOST do
    told = told + call('SREM', P .. 'armed', unpack(topics, first, math.min(first + MOST - 1, #topics)))
  end
  if told > 0 then
    call('PUBLISH', P .. 'nudges', table.concat(topics, '\n'))
  end
  rung = {}
end

-- awaited: the jobs whose end somebody waits for, by the time after which nobody does any more.
local function tell_awaited()
  if #rung_jobs > 0 and call('ZCARD', P .. 'awaited') > 0 then
    local told = {}
    for first = 1, #rung_jobs, MOST do
      local last = math.min(first + MOST - 1, #rung_jobs)
      for i, until_when in ipairs(call('ZMSCORE', P .. 'awaited', unpack(rung_jobs, first, last))) do
        if until_when then
          told[#told + 1] = rung_jobs[first + i - 1]
        end
      end
    end
    if #told > 0 then
      in_portions('ZREM', P .. 'awaited', told)
      call('PUBLISH', P .. 'ended', table.concat(told))
    end
  end
  rung_jobs = {}
end

local function ring_queue(queue)
  rung['queue:' .. name_of(queue)] = true
  rung['queues'] = true
end
