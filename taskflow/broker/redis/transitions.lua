-- The moves of jobs between statuses. flush() in indexes.lua writes all deferred changes.

-- === part transitions ======================================================================================
-- Changes the status of a job, counts the move, and tallies the event. BURIED and false (a new job) are not counted.
local function move(job, event, to)
  local queue, from = job[F.queue], job[F.status]
  if from and from ~= S.BURIED then
    count(queue, from, -1)
  end
  if to ~= S.BURIED then
    count(queue, to, 1)
  end
  job[F.status] = to
  tally(queue, event)
end

-- --- waiting ------------------------------------------------------------------------------------------

local function make_ready(id, job, event)
  move(job, event, S.READY)
  add_to(ready, job[F.queue], job[F.priority], entry_of(due_of(job), job[F.seq], id))
end

-- Makes a job wait: held, scheduled or ready, by what it awaits and its due time.
local function enter(id, job, event)
  if job[F.expires_at] then
    call('ZADD', P .. 'expiring', job[F.expires_at], id)
  end
  if (job[F.awaits] or 0) > 0 then
    move(job, event, S.HELD)
    call('ZADD', P .. 'held', job[F.seq], id)
  elseif due_of(job) > wall then
    move(job, event, S.SCHEDULED)
    add_scored(scheduled, job[F.due_at], due_member(id, job))
  else
    make_ready(id, job, event)
  end
  save(id, job)
end

-- Removes a waiting job from its index. The entry of a ready job stays: claims skip it as stale.
local function leave_index(id, job)
  if job[F.status] == S.HELD then
    call('ZREM', P .. 'held', id)
  elseif job[F.status] == S.SCHEDULED then
    write_scheduled()
    call('ZREM', P .. 'due', due_member(id, job))
  end
end

-- --- keys and joins -----------------------------------------------------------------------------------

-- keys: key -> the ids of its live jobs, at most one waiting and one running.
local function ids_with_key(key)
  local ids = {}
  local stored = call('HGET', P .. 'keys', key) or ''
  for first = 1, #stored, 16 do
    ids[#ids + 1] = string.sub(stored, first, first + 15)
  end
  return ids
end

-- Returns the ids of the waiting and of the running holder, or nil.
local function holders(key)
  local waiting, running
  for _, id in ipairs(ids_with_key(key)) do
    local job = load(id)
    if job and is_waiting(job) then
      waiting = waiting or id
    elseif job and job[F.status] == S.RUNNING then
      running = running or id
    end
  end
  return waiting, running
end

local function release_awaiting(id)
  local job = load(id)
  if not job or job[F.status] ~= S.HELD or job[F.behind] and job[F.awaits] <= 1 then
    return -- the last one counted is the holder of its key, whose end is not that of a joiner
  end
  set(job, F.awaits, job[F.awaits] - 1)
  save(id, job)
  if job[F.awaits] <= 0 then
    leave_index(id, job)
    set(job, F.due_at, math.max(due_of(job), wall))
    enter(id, job, E.RELEASE)
  end
end

local function release_key(id, job)
  local left = {}
  for _, other in ipairs(ids_with_key(job[F.key])) do
    if other ~= id then
      left[#left + 1] = other
    end
  end
  if #left > 0 then
    call('HSET', P .. 'keys', job[F.key], table.concat(left))
  else
    call('HDEL', P .. 'keys', job[F.key])
  end
  for _, other_id in ipairs(left) do
    local other = load(other_id)
    if other and other[F.behind] == id then
      other[F.behind], other[F.waiting_for] = false, false
      save(other_id, other)
      release_awaiting(other_id)
    end
  end
end

-- Releases the jobs that await this one.
local function release_joined(job)
  local joins = job[F.joins]
  if joins then
    job[F.joins] = false
    for first = 1, #joins, 16 do
      release_awaiting(string.sub(joins, first, first + 15))
    end
  end
end

-- --- leases -------------------------------------------------------------------------------------------

-- Ends the lease of a job. Every lease ends here, except those of plain successes (see settle.lua).
local function release_lease(job)
  local session, tail = string.sub(job[F.claim], 1, 16), string.sub(job[F.claim], 17)
  local tails = released[session]
  if tails then
    tails[#tails + 1] = tail
  else
    released[session] = { tail }
  end
  if job[F.cancel_requested] then
    call('SREM', P .. 'stopping:' .. session, tail)
  end
  job[F.claim] = false
end

-- --- ending -------------------------------------------------------------------------------------------

-- Ends a job, frees its key, and releases the jobs that await it. `keep_for` is in microseconds.
local function finish(id, job, event, status, reason, keep_for)
  if not job[F.claim] or job[F.settled] ~= struct.pack('>I4', job[F.epoch]) .. job[F.claim] then
    ends[#ends + 1] = id
  end
  leave_index(id, job)
  move(job, event, status)
  if not keep_for then
    keep_for = status == S.FAILED and R.keep_failed or R.keep_cancelled
  end
  if job[F.claim] then
    release_lease(job)
  end
  set(job, F.ended_at, wall)
  set(job, F.fade_at, wall + keep_for)
  if reason or job[F.reason] then
    set(job, F.reason, reason or false)
  end
  if job[F.waiting_for] then
    job[F.waiting_for] = false
  end
  if job[F.expires_at] then
    call('ZREM', P .. 'expiring', id)
  end
  if status == S.FAILED then
    join_group(id, job)
  end
  add_scored(fading, job[F.fade_at], id)
  add_to(kept, job[F.queue], status == S.FAILED and 1 or 0, kept_member(id, job))
  save(id, job)
  if job[F.key] then
    release_key(id, job)
  end
  release_joined(job)
  ended_ids[#ended_ids + 1] = id
end

-- Makes a job wait again after a run. A requested cancellation, or a replacement that waits for it, ends it instead.
-- Without `due` it is ready at its old position, even if the clock was set back before its due time.
local function requeue(id, job, event, due)
  local successor
  if job[F.key] then
    local waiting = holders(job[F.key])
    if waiting and load(waiting)[F.behind] == id then
      successor = waiting
    end
  end
  release_lease(job) -- before finish(), so that this end is noted: the verdict does not say it
  if job[F.cancel_requested] then
    finish(id, job, event, S.CANCELLED, job[F.cancel_requested])
  elseif successor then
    finish(id, job, event, S.CANCELLED, string.format(W.REPLACED_BY, id_text(successor)))
  elseif due then
    set(job, F.due_at, due)
    enter(id, job, event)
  else
    if job[F.expires_at] then
      call('ZADD', P .. 'expiring', job[F.expires_at], id)
    end
    make_ready(id, job, event)
    save(id, job)
  end
end

-- Appends an error to the job: msgpack arrays in a row, as verdict.py reads them. If they grow too large, only the newest stays.
local function add_error(job, kind, message, traceback, attempt, ending)
  local started = job[F.started_at] or job[F.claimed_at] or 0
  local one = cmsgpack.pack({ kind, message, traceback, attempt, ending, job[F.worker] or '', started, wall })
  local whole = (job[F.errors] or '') .. one
  set(job, F.errors, #whole <= R.max_errors_bytes and whole or one)
end

-- A job with a follow-up waits for a worker that ends it and sends that. If its workers keep being lost, it ends without. `due` is when it
-- may be leased again, nil for now; `fingerprint` is that of its cause.
local function poison(id, job, why, due, fingerprint)
  why = W.POISON .. why
  set(job, F.is_poison, 1)
  local tags, after_tags = packed_tags(job)
  local follows = (tags and after_tags or sub(job[F.extras] or '', 2, 3)) == F.followed_up
  if follows and job[F.crashes] <= R.most_crashes_as_poison then
    set(job, F.reason, why)
    set(job, F.waiting_for, W.FOLLOW_UP_WAITS)
    job[F.expires_at] = false
    requeue(id, job, E.CRASH, job[F.crashes] > R.max_crashes + 1 and due or nil)
  else
    local about = call('HGET', P .. 'session:' .. sub(job[F.claim], 1, 16), 'about')
    local is_read, parts = pcall(cmsgpack.unpack, about or '')
    local deploy = is_read and type(parts) == 'table' and type(parts[4]) == 'string' and parts[4] or ''
    set(job, F.cause, fingerprint .. sub(deploy, 1, F.most_deploy))
    finish(id, job, E.CRASH, S.FAILED, follows and why .. W.FOLLOW_UP_LOST or why)
  end
end

local function hand_back(id, job, counts)
  local wait = 0
  if counts then
    local hand_backs, waits = (job[F.hand_backs] or 0) + 1, R.hand_back_backoff
    set(job, F.hand_backs, hand_backs)
    wait = waits[math.min(hand_backs, #waits)]
    if wait > 0 then
      set(job, F.waiting_for, string.format(W.HANDED_BACK_IN_VAIN, hand_backs))
    end
  end
  requeue(id, job, E.HAND_BACK, wait > 0 and wall + wait or nil)
end

-- Counts a lost worker. `cause` is false if it is unknown; otherwise `fingerprint` is that of jobs that are poison because of it.
local function crash(id, job, cause, fingerprint)
  local crashes = (job[F.crashes] or 0) + 1
  set(job, F.crashes, crashes)
  local lost = string.format(W.WORKER_LOST, job[F.worker] or '?', crashes)
  add_error(job, W.CRASHED, cause and lost .. W.DIED_OF .. cause or lost, '', (job[F.failures] or 0) + 1, W.ENDING_CRASHED)
  local waits = R.crash_backoff
  local wait = waits[math.min(crashes, #waits)]
  local due = wait > 0 and wall + wait or nil
  if crashes > R.max_crashes and not job[F.cancel_requested] then
    local in_a_row = string.format(W.LOST_IN_A_ROW, crashes)
    poison(id, job, cause and in_a_row .. W.LAST_DIED_OF .. cause or in_a_row, due, fingerprint or F.poison)
  else
    requeue(id, job, E.CRASH, due)
  end
end

-- Deletes all of an ended job except its id and fence, because a client may still resend a call that names it.
local function bury(id, job)
  write_kept()
  leave_kept(id, job)
  leave_tags(id, job)
  move(job, E.DROP, S.BURIED)
  drop_payload(id, job)
  if size_apart(job[F.result]) then
    results_dropped[#results_dropped + 1] = id
  end
  if job[F.spoilt] then -- the record, the payload and the result that were set aside
    call('UNLINK', P .. 'bad:j:' .. id, P .. 'b:' .. id, P .. 'o:' .. id)
  end
  for field = F.payload, #job do
    if field ~= F.settled and field ~= F.ended_at then
      job[field] = false
    end
  end
  add_scored(fading, job[F.ended_at] + R.repeat_for, id)
  save(id, job)
end
