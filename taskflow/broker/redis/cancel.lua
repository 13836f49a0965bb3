-- Ends what waits, marks what runs. Arguments: ids. The reply: the status found of each, -1 for an unknown one.

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
    call('SADD', P .. 'x:' .. session, tail_of(job[F.claim]))
    sessions[session] = true
  end
end
flush()
for session in pairs(sessions) do
  local hex = string.gsub(session, '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
  call('PUBLISH', P .. 'nudges', 'session:' .. hex)
end
return found
