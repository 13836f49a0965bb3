-- The operations of the console.

-- === script queues =========================================================================================
-- Describes each queue. Reply, as msgpack: values for each queue, then the server's time. The values are the name, whether it is
-- paused, the counts by status, the due time of the ready job that has waited longest, and the next due time.

local names, about = {}, {}
local stored = call('HGETALL', P .. 'names')
for i = 1, #stored, 2 do
  if string.sub(stored[i], 1, 2) == 'q:' then
    local name = string.sub(stored[i], 3)
    names[#names + 1] = name
    about[name] = tonumber(stored[i + 1])
  end
end
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do
  if not about[name] then
    names[#names + 1] = name
    about[name] = false
  end
end

local function counts_of(queue)
  local fields = {}
  for code = S.HELD, S.CANCELLED do
    fields[#fields + 1] = (queue or '-') .. ':' .. code
  end
  local counts, is_known = call('HMGET', P .. 'counts', unpack(fields)), false
  for i = 1, #fields do
    is_known = is_known or counts[i] ~= false
    counts[i] = tonumber(counts[i]) or 0
  end
  return counts, is_known
end

-- Looks at the first hundred entries of each priority.
local function oldest_ready(queue)
  local oldest = false
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    local entries = peek(list, returned, 100)
    for _, entry in ipairs(entries) do
      local job = load(string.sub(entry, 15))
      if job and job[F.status] == S.READY and due_of(job) == struct.unpack('>I8', entry) then
        oldest = math.min(oldest or due_of(job), due_of(job))
        break
      end
    end
  end
  return oldest
end

-- Returns the first due time of each queue among the first ten thousand scheduled jobs.
local function next_due(wanted)
  local found = {}
  for page = 0, 9 do
    local members = call('ZRANGE', P .. 'due', page * 1000, page * 1000 + 999, 'WITHSCORES')
    for i = 1, #members, 2 do
      local _, queue = struct.unpack('>I6I4', members[i])
      if not found[queue] then
        found[queue] = tonumber(members[i + 1])
        wanted = wanted - 1
      end
    end
    if wanted <= 0 or #members < 2000 then
      break
    end
  end
  return found
end

local rows, with_scheduled = {}, 0
for _, name in ipairs(names) do
  local queue = about[name]
  local counts, is_known = counts_of(queue)
  local is_paused = call('SISMEMBER', P .. 'paused', name) == 1
  if is_known or is_paused then -- a refused enqueue leaves a name without a job
    local ready_since = counts[1 + S.READY] > 0 and oldest_ready(queue) or false
    with_scheduled = with_scheduled + (counts[1 + S.SCHEDULED] > 0 and 1 or 0)
    rows[#rows + 1] = { name, is_paused, counts, ready_since, queue }
  end
end
local due = next_due(with_scheduled)
for _, row in ipairs(rows) do
  row[5] = row[5] and due[row[5]] or false
end
return cmsgpack.pack({ rows, wall })

-- === script metrics ========================================================================================
-- Returns totals of events. Reply, as msgpack: {field, number, ...} and {number, text, ...}; a field is "queue's number:event".

local stored, totals, numbers = call('HGETALL', P .. 'totals'), {}, {}
for i = 1, #stored, 2 do
  local queue, total = tonumber(string.match(stored[i], '^(%d+):')), tonumber(stored[i + 1])
  if queue and total then
    numbers[queue] = true
    totals[#totals + 1], totals[#totals + 2] = stored[i], total
  end
end
return cmsgpack.pack({ totals, texts_of(numbers) })

-- === part matching =========================================================================================
-- Returns the ids whose jobs match the filter: {queue, job, statuses, ended before (microseconds ago), poison}, with false
-- for absent values.

local function number_in(filter)
  local queue = filter[1] and tonumber(call('HGET', P .. 'names', 'q:' .. filter[1]) or -1)
  local name = filter[2] and tonumber(call('HGET', P .. 'names', 'j:' .. filter[2]) or -1)
  return queue, name
end

local function matching(ids, filter)
  local queue, name = number_in(filter)
  local statuses
  if filter[3] then
    statuses = {}
    for _, code in ipairs(filter[3]) do
      statuses[code] = true
    end
  end
  local found = {}
  prefetch(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job
      and is_kept(job)
      and (not queue or job[F.queue] == queue)
      and (not name or job[F.name] == name)
      and (not statuses or statuses[job[F.status]])
      and (not filter[4] or (has_ended(job) and job[F.ended_at] <= wall - filter[4]))
      and (not filter[5] or (job[F.is_poison] and job[F.status] == S.FAILED))
    then
      found[#found + 1] = id
    end
  end
  return found
end

-- === script browse =========================================================================================
-- Returns jobs that match a filter, up to a limit, in the form of `read`. Arguments: ids, filter, limit.

local reply, numbers = { '' }, {}
for _, id in ipairs(matching(given[1], given[2])) do
  if #reply < 2 * given[3] then
    local job = load(id)
    reply[#reply + 1] = id
    reply[#reply + 1] = cmsgpack.pack(job)
    numbers[job[F.queue]], numbers[job[F.name]] = true, true
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers) })
return reply

-- === part ids_in ===========================================================================================
-- Returns the ids in an index ("held", "due", "leases", "ended"), those of "due" and "ended" from one position to another.
local function ids_in(index, first, last)
  local ids = {}
  local function add_all(members, from)
    for _, member in ipairs(members) do
      ids[#ids + 1] = sub(member, from)
    end
  end
  if index == 'held' then
    add_all(call('SMEMBERS', P .. 'held'), 1)
  elseif index == 'due' then
    add_all(call('ZRANGE', P .. 'due', first, last), 11)
  elseif index == 'ended' then
    add_all(call('ZRANGE', P .. 'fade', first, last), 1)
  else
    for _, set in ipairs({ 'alive', 'dead' }) do
      for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
        add_all(call('HVALS', P .. 'l:' .. session), 1)
      end
    end
  end
  return ids
end

-- === script candidates =====================================================================================
-- Returns ids from an index; some may have another status, so the caller filters. Arguments: the index, the position to continue at, how
-- many. Reply: {the next position or -1, id, ...}.

local index, first, number = given[1], given[2], given[3]
local ids = ids_in(index, first, first + number - 1)
local has_pages = index == 'due' or index == 'ended'
table.insert(ids, 1, has_pages and #ids == number and first + number or -1)
return ids

-- === script purge ==========================================================================================
-- Deletes jobs that match a filter, in order of arrival, up to a limit. Arguments: ids, filter, limit.
-- Reply: how many.

prefetch(given[1])
set_all_aside()
flush()
local ids = matching(given[1], given[2])
table.sort(ids, function(one, other)
  return load(one)[F.seq] < load(other)[F.seq]
end)
local purged = {}
for _, id in ipairs(ids) do
  local job = load(id)
  if #purged < given[3] and job[F.status] ~= S.RUNNING then
    if is_waiting(job) then
      finish(id, job, E.CANCEL, S.CANCELLED, W.PURGED)
    end
    purged[#purged + 1] = id
  end
end
flush()
for _, id in ipairs(purged) do
  bury(id, load(id))
end
flush()
return #purged

-- === script redo =========================================================================================
-- Retries ended jobs. Arguments: ids. Reply: the name of a member of Redone (console.py) for each.

local function make_fresh(id, job)
  job[F.due_at] = wall
  for _, field in ipairs({ F.cleared_by_redo }) do
    if job[field] then
      job[field] = false
    end
  end
  call('ZREM', P .. 'fade', id)
  leave_kept(id, job)
end

local function is_taken(key)
  local waiting, running = holders(key)
  return waiting or running
end

local answers = {}
prefetch(given[1])
set_all_aside()
flush()
for i, id in ipairs(given[1]) do
  local job = load(id)
  if not job or not is_kept(job) then
    answers[i] = 'UNKNOWN'
  elseif not has_ended(job) then
    answers[i] = 'LIVE'
  elseif job[F.status] == S.SUCCEEDED then
    answers[i] = 'SUCCEEDED'
  elseif job[F.key] and is_taken(job[F.key]) then
    answers[i] = 'KEY_TAKEN'
  else
    make_fresh(id, job)
    if job[F.key] then
      call('HSET', P .. 'k', job[F.key], id)
    end
    enter(id, job, E.REDO)
    answers[i] = 'OK'
  end
end
flush()
return answers

-- === script pause ==========================================================================================
-- Pauses or resumes a queue. Arguments: its name, true to pause.

local name, pauses = given[1], given[2]
if pauses then
  call('SADD', P .. 'paused', name)
  call('ZREM', P .. 'ready', name)
else
  call('SREM', P .. 'paused', name)
  local queue = call('HGET', P .. 'names', 'q:' .. name)
  local jobs = queue and tonumber(call('HGET', P .. 'counts', queue .. ':' .. S.READY) or 0) or 0
  if jobs > 0 then
    call('ZADD', P .. 'ready', 0, name)
    nudge(name, jobs)
  end
end
return redis.status_reply('OK')
