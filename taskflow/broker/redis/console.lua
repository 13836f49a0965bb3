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
  for _, priority in ipairs(call('ZRANGE', P .. 'priorities:' .. queue, 0, -1)) do
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
-- Returns a function that returns whether a job matches the filter: {queue, job, statuses, ended before (microseconds ago), poison}, with
-- false for absent values.
local function matcher(filter)
  local queue = filter[1] and tonumber(call('HGET', P .. 'names', 'q:' .. filter[1]) or -1)
  local name = filter[2] and tonumber(call('HGET', P .. 'names', 'j:' .. filter[2]) or -1)
  local statuses
  if filter[3] then
    statuses = {}
    for _, code in ipairs(filter[3]) do
      statuses[code] = true
    end
  end
  return function(job)
    return is_kept(job)
      and (not queue or job[F.queue] == queue)
      and (not name or job[F.name] == name)
      and (not statuses or statuses[job[F.status]])
      and (not filter[4] or (has_ended(job) and job[F.ended_at] <= wall - filter[4]))
      and (not filter[5] or (job[F.is_poison] and job[F.status] == S.FAILED))
  end
end

-- Returns the ids whose jobs match.
local function matching(ids, filter)
  local found, is_match = {}, matcher(filter)
  prefetch(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job and is_match(job) then
      found[#found + 1] = id
    end
  end
  return found
end

-- === script failure_parts ==================================================================================
-- Counts failed jobs in cells (see base.lua). Arguments: the cell after which to begin or false, how many cells.
-- Reply, as msgpack: {cell, number of jobs, when the first and the last of them ended, id of the last one} for each cell; {number, text,
-- ...} for the names of queues and jobs.

local cells, numbers = {}, {}
for _, cell in ipairs(call('ZRANGE', P .. 'failure_cells', given[1] and '(' .. given[1] or '-', '+', 'BYLEX', 'LIMIT', 0, given[2])) do
  local key = P .. 'failures:' .. cell
  local first, last = call('ZRANGE', key, 0, 0, 'WITHSCORES'), call('ZRANGE', key, -1, -1, 'WITHSCORES')
  cells[#cells + 1] = { cell, call('ZCARD', key), tonumber(first[2]) or 0, tonumber(last[2]) or 0, last[1] or '' }
  if #cell >= 16 then
    local queue, name = struct.unpack('>I4I4', cell, 9)
    numbers[queue], numbers[name] = true, true
  end
end
return cmsgpack.pack({ cells, texts_of(numbers) })

-- === script failure_cells ==================================================================================
-- Returns the cells of a fingerprint. Arguments: the fingerprint, and a text above each of its cells.

return call('ZRANGE', P .. 'failure_cells', '[' .. given[1], '(' .. given[2], 'BYLEX')

-- === script purge ==========================================================================================
-- Deletes jobs that match a filter, in order of arrival, up to a limit. Arguments: ids, filter, limit.
-- Reply: how many.

-- Removes stale entries from the head of a list of ready jobs, so that the next call need not read them: at most a thousand.
local function trim(place)
  local list, returned = ready_keys(place)
  for _ = 1, 10 do
    local entries, is_listed = peek(list, returned, 100)
    local entry_ids, stale = {}, 0
    for i, entry in ipairs(entries) do
      entry_ids[i] = sub(entry, 15)
    end
    prefetch(entry_ids)
    for i, entry in ipairs(entries) do
      local time, seq = struct.unpack('>I8I6', entry)
      local job = load(entry_ids[i])
      if job and job[F.status] == S.READY and due_of(job) == time and job[F.seq] == seq then
        break
      end
      stale = i
    end
    if stale > 0 then
      drop_first(list, returned, stale, is_listed)
    end
    if stale < 100 then
      break
    end
  end
end

prefetch(given[1])
set_all_aside()
flush()
local ids = matching(given[1], given[2])
table.sort(ids, function(one, other)
  return load(one)[F.seq] < load(other)[F.seq]
end)
local purged, places, left_for_subscribers, has_subscriber = {}, {}, {}, call('EXISTS', P .. 'end_subscribers') == 1
for _, id in ipairs(ids) do
  local job = load(id)
  if #purged < given[3] and job[F.status] ~= S.RUNNING then
    if job[F.status] == S.READY then
      places[job[F.queue] .. ':' .. job[F.priority]] = true
    end
    if is_waiting(job) then
      finish(id, job, E.CANCEL, S.CANCELLED, W.PURGED, R.purged_for)
      left_for_subscribers[id] = has_subscriber
    end
    purged[#purged + 1] = id
  end
end
flush()
for _, id in ipairs(purged) do
  if not left_for_subscribers[id] then
    bury(id, load(id))
  end
end
flush()
for place in pairs(places) do
  trim(place)
end
return #purged

-- === script drop ===========================================================================================
-- Deletes ended jobs. Arguments: ids. Reply: the status that each had, -1 for an unknown id.

prefetch(given[1])
set_all_aside()
flush()
local found = {}
for i, id in ipairs(given[1]) do
  local job = load(id)
  found[i] = job and is_kept(job) and job[F.status] or -1
  if found[i] >= 0 and has_ended(job) then
    bury(id, job)
  end
end
flush()
return found

-- === script redo ===========================================================================================
-- Retries ended jobs. Arguments: ids. Reply: the name of a member of Redone (console.py) for each.

local function make_fresh(id, job)
  leave_kept(id, job)
  job[F.due_at] = wall
  for _, field in ipairs({ F.cleared_by_redo }) do
    if job[field] then
      job[field] = false
    end
  end
  call('ZREM', P .. 'fade', id)
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
      call('HSET', P .. 'keys', job[F.key], id)
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

-- === script record_act =====================================================================================
-- Adds an act to the audit log, unless it is among the newest hundred. Arguments: its id, its body.

local newest, last = call('ZRANGE', P .. 'acts', -100, -1, 'WITHSCORES'), 0
for i = 1, #newest, 2 do
  if sub(newest[i], 9, 24) == given[1] then
    return redis.status_reply('OK')
  end
  last = tonumber(newest[i + 1])
end
call('ZADD', P .. 'acts', last + 1, struct.pack('>I8', wall) .. given[1] .. given[2])
call('ZREMRANGEBYRANK', P .. 'acts', 0, -1 - R.most_acts)
return redis.status_reply('OK')

-- === script acts ===========================================================================================
-- Returns acts, newest first, each followed by its number. Arguments: the number before which to begin or false, how many.

return call('ZRANGE', P .. 'acts', given[1] and '(' .. given[1] or '+inf', '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, given[2], 'WITHSCORES')
