-- Who is to be told of what the call does: told once, at its end.

local rung, rung_jobs = {}, {}

-- armed: the topics that somebody has found no more under, and waits for. Only those are told, once: a busy
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
