-- What a claim has to do with jobs that are more than the fixed layout holds, or that it has leased before.

-- Changes the job for its next run. False when nobody stands at the entry any more, nil when it has expired, and is left to upkeep;
-- else what is stored, the numbers of its queue and name, and how large a payload is that is kept apart. `stored` is false for a key
-- that MGET has not found.
local function lease_again(id, stored, entry, queue, claim, worker)
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
  elseif job[F.status] ~= S.READY or due_of(job) ~= time_of(entry) then
    if job[F.status] < S.READY and due_of(job) == time_of(entry) then -- it was ready: somebody else has made it wait
      recount()
    end
    return false
  elseif job[F.queue] ~= queue then
    report_spoilt(id, { F.queue, 'it stands in the list of another queue', S.READY, queue })
    return false
  end
  if job[F.expires] and job[F.expires] <= wall then
    return nil
  end
  job[F.status] = S.RUNNING
  set(job, F.epoch, (job[F.epoch] or 0) + 1)
  set(job, F.claim, claim)
  set(job, F.claimed, wall)
  set(job, F.claimed_steady, steady)
  set(job, F.worker, worker)
  for _, field in ipairs({ F.started, F.progress, F.waiting_for }) do
    if job[field] then
      job[field] = false
    end
  end
  return cmsgpack.pack(job), job[F.queue], job[F.name], size_apart(job[F.payload]) or 0
end

-- What this request was answered before: id, job, id, job, ... and the numbers in them.
local function answer_again(session, request)
  local told, numbers = { '' }, {}
  local given_then = leases_of(session, nil, function(tail)
    return request_of(tail) == request
  end)
  for _, lease in ipairs(given_then) do
    local job = leased(session, lease[1], lease[2])
    if job then
      told[#told + 1] = lease[2]
      told[#told + 1] = cmsgpack.pack(job)
      numbers[job[F.queue]], numbers[job[F.name]] = true, true
    end
  end
  return told, numbers
end

return lease_again, answer_again
