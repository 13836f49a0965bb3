-- === part publish_wakeups ==================================================================================

local rung = {}

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

-- === part publish_ended ====================================================================================

local rung_jobs = {}

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

-- === script arm ============================================================================================

-- Asks to be told. Arguments: topics; ids of jobs whose end is waited for; until when (microseconds from now) for these.
-- The reply: {the topics, the ids (one string) that need not be waited for: there is something already}.

local topics, ids, patience = given[1], given[2], given[3]

local function has_ready(name)
  local queue = call('HGET', P .. 'names', 'q:' .. name)
  return queue and tonumber(call('HGET', P .. 'counts', queue .. ':' .. S.READY) or 0) > 0
end

local function is_there(topic)
  if topic == 'queues' then
    return call('EXISTS', P .. 'ready') == 1
  elseif topic == 'due' then
    return call('EXISTS', P .. 'due') == 1
  elseif string.sub(topic, 1, 6) == 'queue:' then
    return has_ready(string.sub(topic, 7))
  elseif string.sub(topic, 1, 8) == 'session:' then
    local id = string.gsub(string.sub(topic, 9), '%x%x', function(byte)
      return string.char(tonumber(byte, 16))
    end)
    return call('EXISTS', P .. 'x:' .. id) == 1
  end
end

local there, ended = {}, {}
for _, topic in ipairs(topics) do
  if is_there(topic) then
    there[#there + 1] = topic
  elseif string.sub(topic, 1, 8) ~= 'session:' then -- of a session all is told
    call('SADD', P .. 'armed', topic)
  end
end
prefetch(ids)
for _, id in ipairs(ids) do
  local job = load(id)
  if job and job[F.status] <= S.RUNNING then
    call('ZADD', P .. 'awaited', wall + patience, id)
  else
    ended[#ended + 1] = id
  end
end
return { there, table.concat(ended) }
