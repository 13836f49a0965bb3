-- === part results ==========================================================================================
-- Results that were sent ahead under o:FENCE, and belong to settled jobs from now on: fences and ids in turn.
local results = {}

local function note_result(fence, id)
  results[#results + 1] = fence
  results[#results + 1] = id
end

-- Called as soon as the jobs are written: no job then names a result that is not there.
local function keep_results()
  for i = 1, #results, 2 do
    local key = P .. 'o:' .. results[i + 1]
    call('RENAME', P .. 'o:' .. results[i], key)
    call('PERSIST', key)
  end
  results = {}
end

-- === script settle =========================================================================================
-- Settles runs.
--
-- arguments  plain successes in columns, by session and keep: session, keep (microseconds), ids, fences (epoch, 4 bytes, and claim),
--            claims without the session (8 bytes), and duration, keep and result in the fixed layout; settlements of any kind; the texts
--            of the queues and names of follow-ups; the fences of large results, which were sent ahead
--            a settlement: id, epoch, claim, kind, duration, keep (microseconds), value, error, after, follow-ups, progress, cause
--            a kind: 1 succeeded (value: result), 2 failed (error; value: reason), 3 discarded (value: reason), 4 cancelled
--            (value: reason), 5 retried (error, after), 6 snoozed (after), 7 parked (value: what it waits for; after), 8 handed back
--            (value: whether it counts); an error: type, message, traceback, attempt
-- reply      a string with a byte for each settlement, columns first: "o" for OK, "s" for STALE; "MISSING" if a result is gone, and nothing
--            was settled

local groups, others, texts, ahead = given[1], given[2], given[3], {}
for i, fence in ipairs(given[4]) do
  ahead[i] = P .. 'o:' .. fence
end
if #ahead > 0 and call('EXISTS', unpack(ahead)) < #ahead then
  return redis.status_reply('MISSING')
end
local answers, others_at = {}, {}
local now, is_succeeded = struct.pack('>I8', wall), string.char(S.SUCCEEDED)
local values, payloads_to_drop = {}, {}

-- Returns the record after a success in the first run, its queue and arrival number, and whether its payload is stored apart. Returns nil
-- if the job is not plain or does not have this lease. The layout is in fields.py.
local function succeeded_record(stored, fence, outcome)
  if byte(stored) ~= S.RUNNING or sub(stored, L.fence) ~= fence or #stored < L.running + 1 then
    return nil
  end
  local extras_at = L.running + 2 + struct.unpack('>I2', stored, L.running) + L.waiting - 1
  if #stored < extras_at + 1 then
    return nil
  end
  local extras = struct.unpack('>I2', stored, extras_at)
  local queue, seq = struct.unpack('>I4xxxxxxxxxxxxc6', stored, extras_at - L.waiting + 3)
  local payload_at = extras_at + extras + 6
  local is_apart = #stored == payload_at + 5 and sub(stored, payload_at, payload_at + 1) == L.mark
  return is_succeeded .. sub(stored, 2, extras_at + 1 + extras) .. now .. outcome, queue, seq, is_apart
end

-- Adds members that all have one score.
local function add_with_score(key, score, members)
  local text, scored = string.format('%.0f', score), {}
  for i, member in ipairs(members) do
    scored[2 * i - 1], scored[2 * i] = text, member
  end
  in_portions('ZADD', key, scored)
end

local function write_group(session, keep_for, done, tails, kept)
  in_portions('HDEL', P .. 'leases:' .. session, tails)
  add_with_score(P .. 'fade', wall + keep_for, done)
  for number, members in pairs(kept) do
    local queue = tostring(number)
    add_with_score(P .. 'kept:' .. queue .. ':0', wall, members)
    count(queue, S.RUNNING, -#members)
    count(queue, S.SUCCEEDED, #members)
    tally(queue, E.SUCCEED, #members)
  end
end

-- Settles plain successes. Those whose jobs are not plain join `others`.
local function settle_group(session, keep_for, ids, fences, tails, outcomes)
  local keys, done, done_tails, kept = {}, {}, {}, {}
  local job_key = P .. 'j:'
  for i, id in ipairs(ids) do
    keys[i] = job_key .. id
  end
  for i, stored in ipairs(call('MGET', unpack(keys))) do
    local id, outcome = ids[i], outcomes[i]
    local new, queue, seq, is_apart
    if stored then
      new, queue, seq, is_apart = succeeded_record(stored, fences[i], outcome)
    end
    if new then
      local n = #done + 1
      done[n], done_tails[n], ended_ids[#ended_ids + 1] = id, tails[i], id
      values[#values + 1] = keys[i]
      values[#values + 1] = new
      local members = kept[queue] or {}
      kept[queue] = members
      members[#members + 1] = seq .. id
      if is_apart then
        payloads_to_drop[#payloads_to_drop + 1] = P .. 'b:' .. id
      end
      if #outcome == 26 and sub(outcome, 21, 22) == L.mark then
        note_result(fences[i], id)
      end
      answers[#answers + 1] = 'o'
    else
      local epoch, claim = struct.unpack('>I4c24', fences[i])
      answers[#answers + 1] = 's'
      others[#others + 1] = { id, epoch, claim, 1, struct.unpack('>I8', outcome), keep_for, sub(outcome, 21), false, false, false, false }
      others_at[#others] = #answers
    end
  end
  write_group(session, keep_for, done, done_tails, kept)
end

local sent_as_items = #others
for _, group in ipairs(groups) do
  settle_group(unpack(group))
end
set_all(values)
keep_results()
if #payloads_to_drop > 0 then -- last: if a step fails, the jobs must run again
  call('UNLINK', unpack(payloads_to_drop))
end
for i = 1, sent_as_items do
  answers[#answers + 1] = 's'
  others_at[i] = #answers
end
if #others > 0 then
  local settle_all = load_rest()
  for i, answer in ipairs(settle_all(others, texts)) do
    answers[others_at[i]] = answer
  end
else
  write_counts()
  publish_ends()
end
return table.concat(answers)

-- === part settle_others ====================================================================================
-- Settlements of any kind, one by one.

-- A worker reported an outcome: resets the count of leases lost in a row.
local function reset_crashes(job)
  if #job >= F.crashes then
    for _, field in ipairs({ F.cleared_by_outcome }) do
      if job[field] then
        job[field] = false
      end
    end
  end
end

local function count_failure(job, error)
  set(job, F.failures, (job[F.failures] or 0) + 1)
  add_error(job, unpack(error))
end

local apply_verdict = {
  function(id, job, settlement)
    drop_payload(id, job)
    set(job, F.result, settlement[7])
    if size_apart(settlement[7]) then
      note_result(job[F.settled], id)
    end
    finish(id, job, E.SUCCEED, S.SUCCEEDED, false, settlement[6])
  end,
  function(id, job, settlement)
    count_failure(job, settlement[8])
    set(job, F.cause, settlement[12] or F.unknown)
    finish(id, job, E.FAIL, S.FAILED, settlement[7])
  end,
  function(id, job, settlement)
    set(job, F.cause, settlement[12] or F.unknown)
    finish(id, job, E.DISCARD, S.FAILED, settlement[7])
  end,
  function(id, job, settlement)
    finish(id, job, E.CANCEL, S.CANCELLED, settlement[7])
  end,
  function(id, job, settlement)
    count_failure(job, settlement[8])
    requeue(id, job, E.RETRY, wall + settlement[9])
  end,
  function(id, job, settlement)
    set(job, F.snoozes, (job[F.snoozes] or 0) + 1)
    requeue(id, job, E.SNOOZE, wall + settlement[9])
  end,
  function(id, job, settlement)
    if not job[F.parked_at] then
      set(job, F.parked_at, wall)
    end
    set(job, F.waiting_for, settlement[7])
    requeue(id, job, E.PARK, wall + settlement[9])
  end,
  function(id, job, settlement)
    hand_back(id, job, settlement[7])
  end,
}

local function settle(settlement, texts)
  local id, kind = settlement[1], settlement[4]
  local job = load(id)
  if not job then
    return 's'
  end
  local fence = struct.pack('>I4', settlement[2]) .. settlement[3]
  if job[F.status] ~= S.RUNNING or job[F.epoch] ~= settlement[2] or job[F.claim] ~= settlement[3] then
    return job[F.settled] == fence and 'o' or 's'
  end
  set(job, F.settled, fence)
  set(job, F.started_at, wall - settlement[5])
  if settlement[11] then
    set(job, F.progress, settlement[11])
  end
  if kind < 7 and not job[F.is_poison] then
    reset_crashes(job)
  end
  apply_verdict[kind](id, job, settlement)
  if settlement[10] then
    add_all(texts, settlement[10])
  end
  return 'o'
end

local function settle_all(settlements, texts)
  local ids, answers = {}, {}
  for i, settlement in ipairs(settlements) do
    ids[i] = settlement[1]
  end
  prefetch(ids)
  for i, settlement in ipairs(settlements) do
    answers[i] = settle(settlement, texts)
  end
  write_jobs()
  keep_results()
  flush()
  return answers
end

return settle_all

-- === script holders ========================================================================================
-- Finds the live jobs that have keys. Arguments: keys. Reply: for each, the id of the waiting holder, else of the running one, else "".

local found = {}
for i, key in ipairs(given[1]) do
  local waiting, running = holders(key)
  found[i] = waiting or running or ''
end
return found

-- === script read ===========================================================================================
-- Reads jobs. Arguments: ids; those of them whose end a caller awaits; its listener.
-- Reply: {time and texts as msgpack; id, job, id, job, ...} of those that are kept.

local reply, numbers = { '' }, {}
prefetch(given[1])
for _, id in ipairs(given[1]) do
  local job = load(id)
  if job and is_kept(job) then
    reply[#reply + 1] = id
    reply[#reply + 1] = cmsgpack.pack(job)
    numbers[job[F.queue]], numbers[job[F.name]] = true, true
  end
end
for _, id in ipairs(given[2]) do
  local job = load(id)
  if job and job[F.status] <= S.RUNNING then
    await_end(id, given[3])
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers) })
return reply

-- === script cancel =========================================================================================
-- Cancels waiting jobs, and asks running ones to stop. Arguments: ids. Reply: the status that each had, -1 for an unknown id.

prefetch(given[1])
local found, sessions = {}, {}
for i, id in ipairs(given[1]) do
  local job = load(id)
  found[i] = job and is_kept(job) and job[F.status] or -1
  if found[i] >= 0 and is_waiting(job) then
    finish(id, job, E.CANCEL, S.CANCELLED, W.CANCELLED)
  elseif found[i] == S.RUNNING then
    set(job, F.cancel_requested, W.CANCELLED)
    save(id, job)
    local session = string.sub(job[F.claim], 1, 16)
    call('SADD', P .. 'stopping:' .. session, string.sub(job[F.claim], 17))
    sessions[session] = true
  end
end
flush()
for session in pairs(sessions) do
  local hex = string.gsub(session, '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
  local listener = call('HGET', P .. 'session:' .. session, 'listener')
  if listener then
    publish(listener, 'session:' .. hex)
  end
end
return found
