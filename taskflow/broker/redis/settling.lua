-- Settlements of any kind, one by one.

-- A run came to something: what counts lost leases in a row begins again.
local function progressed(job)
  if #job >= F.crashes then
    for _, field in ipairs({ F.crashes, F.hand_backs, F.parked }) do
      if job[field] then
        job[field] = false
      end
    end
  end
end

local function fail_once(job, error)
  set(job, F.failures, (job[F.failures] or 0) + 1)
  note(job, error[1], error[2], error[3], error[4])
end

local endings = {
  function(id, job, settlement)
    drop_payload(id, job)
    set(job, F.result, settlement[7])
    finish(id, job, E.SUCCEED, S.SUCCEEDED, false, settlement[6])
  end,
  function(id, job, settlement)
    fail_once(job, settlement[8])
    finish(id, job, E.FAIL, S.FAILED, settlement[7])
  end,
  function(id, job, settlement)
    finish(id, job, E.DISCARD, S.FAILED, settlement[7])
  end,
  function(id, job, settlement)
    finish(id, job, E.CANCEL, S.CANCELLED, settlement[7])
  end,
  function(id, job, settlement)
    fail_once(job, settlement[8])
    wait_again(id, job, E.RETRY, wall + settlement[9])
  end,
  function(id, job, settlement)
    set(job, F.snoozes, (job[F.snoozes] or 0) + 1)
    wait_again(id, job, E.SNOOZE, wall + settlement[9])
  end,
  function(id, job, settlement)
    if not job[F.parked] then
      set(job, F.parked, wall)
    end
    set(job, F.waiting_for, settlement[7])
    wait_again(id, job, E.PARK, wall + settlement[9])
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
  set(job, F.started, wall - settlement[5])
  if settlement[11] then
    set(job, F.progress, settlement[11])
  end
  let_go(job)
  if kind < 7 then
    progressed(job)
  end
  endings[kind](id, job, settlement)
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
  flush()
  return answers
end

return settle_all
