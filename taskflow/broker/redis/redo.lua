-- An operator's retry. Arguments: ids. The reply: for each "ok", "unknown", "live", "succeeded" or "key taken".

local function make_fresh(id, job)
  job[F.due] = wall
  for field = F.claim, #job do
    if field ~= F.settled and field ~= F.extras and field ~= F.key and field ~= F.joins and field ~= F.errors
      and field ~= F.claimed and field ~= F.claimed_steady and field ~= F.result
      and field ~= F.spoilt
    then
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
    answers[i] = 'unknown'
  elseif not has_ended(job) then
    answers[i] = 'live'
  elseif job[F.status] == S.SUCCEEDED then
    answers[i] = 'succeeded'
  elseif job[F.key] and is_taken(job[F.key]) then
    answers[i] = 'key taken'
  else
    make_fresh(id, job)
    if job[F.key] then
      call('HSET', P .. 'k', job[F.key], id)
    end
    enter(id, job, E.REDO)
    answers[i] = 'ok'
  end
end
flush()
return answers
