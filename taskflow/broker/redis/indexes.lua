-- The indexes of waiting and ended jobs. Changes are collected during the call, and flush() writes them.

-- === part indexes ==========================================================================================
local ready, scheduled, kept, fading, released, ends = {}, {}, {}, {}, {}, {}

-- Adds a score and a member, as ZADD takes them.
local function add_scored(scored, score, member)
  scored[#scored + 1] = score
  scored[#scored + 1] = member
end

local function entry_of(time, seq, id)
  return struct.pack('>I8I6', time, seq) .. id
end

local function note_ready(queue, jobs)
  local name = name_of(queue)
  readied[name] = (readied[name] or 0) + jobs
end

-- Returns the key of the jobs that a queue keeps, failed ones apart: a sorted set by the time of their end, then by arrival.
local function kept_key(queue, failed)
  return P .. 'kept:' .. queue .. ':' .. failed
end

local function kept_member(id, job)
  return struct.pack('>I6', job[F.seq]) .. id
end

-- Returns the name of the cell of a failed job: all of these with the same cause, queue and name.
local function cell_of(job)
  local cause = job[F.cause] or F.unknown
  return sub(cause, 1, 8) .. struct.pack('>I4I4', job[F.queue], job[F.name]) .. sub(cause, 9)
end

local function join_group(id, job)
  local cell = cell_of(job)
  call('ZADD', P .. 'failures:' .. cell, job[F.ended_at], id)
  call('ZADD', P .. 'failure_cells', 0, cell)
end

local function leave_group(id, job)
  local cell = cell_of(job)
  call('ZREM', P .. 'failures:' .. cell, id)
  if call('EXISTS', P .. 'failures:' .. cell) == 0 then
    call('ZREM', P .. 'failure_cells', cell)
  end
end

local function leave_kept(id, job)
  if job[F.status] == S.FAILED then
    leave_group(id, job)
  end
  call('ZREM', kept_key(job[F.queue], job[F.status] == S.FAILED and 1 or 0), kept_member(id, job))
end

-- The index of scheduled jobs has their time as score, and orders equal times by arrival.
local function due_member(id, job)
  return struct.pack('>I6I4', job[F.seq], job[F.queue]) .. id
end

-- Adds an entry to a group: a queue's number, and a priority or whether the job has failed.
local function add_to(groups, queue, second, entry)
  local of_queue = groups[queue]
  if not of_queue then
    of_queue = {}
    groups[queue] = of_queue
  end
  local group = of_queue[second]
  if group then
    group[#group + 1] = entry
  else
    of_queue[second] = { entry }
  end
end

local function write_ready()
  for queue, of_queue in pairs(ready) do
    for priority, entries in pairs(of_queue) do
      local list, returned = ready_keys(queue .. ':' .. priority)
      push(list, returned, entries)
      call('ZADD', P .. 'priorities:' .. queue, -priority, priority)
      note_ready(queue, #entries)
    end
  end
  ready = {}
end

-- If one of the jobs is now the first of all, some of the listeners that wait for the next due time are nudged.
local function write_scheduled()
  if #scheduled == 0 then
    return
  end
  in_portions('ZADD', P .. 'due', scheduled)
  local first = call('ZRANGE', P .. 'due', 0, 0)[1]
  for i = 2, #scheduled, 2 do
    if scheduled[i] == first then
      nudge_upkeepers()
      break
    end
  end
  scheduled = {}
end

local function write_released()
  for session, tails in pairs(released) do
    in_portions('HDEL', P .. 'leases:' .. session, tails)
  end
  released = {}
end

local function write_kept()
  for queue, of_queue in pairs(kept) do
    for failed, members in pairs(of_queue) do
      local scored = {}
      for _, member in ipairs(members) do
        add_scored(scored, wall, member)
      end
      in_portions('ZADD', kept_key(queue, failed), scored)
    end
  end
  kept = {}
end

-- Notes the jobs that have ended without a settlement, while a living session subscribes to ends.
local function write_ends()
  if call('EXISTS', P .. 'end_subscribers') == 1 then
    local before = call('LLEN', P .. 'ends')
    if before == 0 then
      nudge_upkeepers()
    end
    in_portions('RPUSH', P .. 'ends', ends)
    local dropped = before + #ends - R.most_ends
    if dropped > 0 then
      call('LTRIM', P .. 'ends', dropped, -1)
      call('HINCRBY', P .. 'meta', 'ends_dropped', dropped)
    end
  end
  ends = {}
end

-- Writes all deferred changes. Code that reads an index after a change must flush first.
local function flush()
  write_jobs()
  write_released()
  write_ready()
  write_kept()
  write_scheduled()
  in_portions('ZADD', P .. 'fade', fading)
  fading = {}
  write_counts()
  if #ends > 0 then
    write_ends()
  end
  wake_listeners()
  publish_ends()
end
