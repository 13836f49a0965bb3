-- === part publish_wakeups ==================================================================================
local wakeup_topics = {}

-- armed: topics for which a listener awaits a wake-up. Each gets one, and only if it is armed. Otherwise every worker of a busy fleet
-- would
-- be woken by every job.
local function publish_wakeups()
  local topics = {}
  for topic in pairs(wakeup_topics) do
    topics[#topics + 1] = topic
  end
  local woken = 0
  for first = 1, #topics, MOST do
    woken = woken + call('SREM', P .. 'armed', unpack(topics, first, math.min(first + MOST - 1, #topics)))
  end
  if woken > 0 then
    call('PUBLISH', P .. 'nudges', table.concat(topics, '\n'))
  end
  wakeup_topics = {}
end

-- === part publish_ended ====================================================================================
local ended_ids = {}

-- awaited: jobs whose end a caller awaits, by the time at which it gives up.
local function publish_ended()
  if #ended_ids > 0 and call('ZCARD', P .. 'awaited') > 0 then
    local awaited = {}
    for first = 1, #ended_ids, MOST do
      local last = math.min(first + MOST - 1, #ended_ids)
      for i, until_when in ipairs(call('ZMSCORE', P .. 'awaited', unpack(ended_ids, first, last))) do
        if until_when then
          awaited[#awaited + 1] = ended_ids[first + i - 1]
        end
      end
    end
    if #awaited > 0 then
      in_portions('ZREM', P .. 'awaited', awaited)
      call('PUBLISH', P .. 'ended', table.concat(awaited))
    end
  end
  ended_ids = {}
end

-- === script arm ============================================================================================
-- Asks for wake-ups. Arguments: topics; ids of jobs whose end is awaited; microseconds from now for which it is.
-- Reply: {topics that have something already, ids (one string) of jobs that have ended}.

local topics, ids, awaited_for = given[1], given[2], given[3]

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
  elseif string.sub(topic, 1, 8) ~= 'session:' then -- sessions get every wake-up, without asking
    call('SADD', P .. 'armed', topic)
  end
end
prefetch(ids)
for _, id in ipairs(ids) do
  local job = load(id)
  if job and job[F.status] <= S.RUNNING then
    call('ZADD', P .. 'awaited', wall + awaited_for, id)
  else
    ended[#ended + 1] = id
  end
end
return { there, table.concat(ended) }
