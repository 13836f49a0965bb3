-- Wake-ups. Each listener (one for each event loop of a process) subscribes to a separate channel, n:ID, and gets only its own messages.

-- === part nudge ============================================================================================
local nudged = {}

-- Nudges up to `wanted` listeners of a list, the latest first, and removes them from it. Returns how many are still wanted. Listeners whose
-- subscription is gone do not count, and a listener that is in several lists counts once.
local function nudge_from(list, topic, wanted)
  while wanted > 0 do
    local listener = call('ZPOPMAX', list)[1]
    if not listener then
      break
    end
    if call('PUBLISH', P .. 'n:' .. listener, topic) > 0 and not nudged[listener] then
      nudged[listener], wanted = true, wanted - 1
    end
  end
  return wanted
end

-- Nudges up to `wanted` listeners that wait for jobs of this queue, if it has any and is not paused. Returns how many are still wanted.
local function nudge(queue, wanted)
  local list = P .. 'waiting:' .. queue
  if call('EXISTS', list, P .. 'waiting:') > 0 and call('ZSCORE', P .. 'ready', queue) then
    wanted = nudge_from(list, 'queue:' .. queue, wanted)
    wanted = nudge_from(P .. 'waiting:', 'queues', wanted)
  end
  return wanted
end

-- === part listeners ========================================================================================
local function add_listener(list, listener)
  call('ZREMRANGEBYSCORE', list, '-inf', wall - R.listener_ttl)
  call('ZADD', list, wall, listener)
  if list ~= P .. 'upkeepers' then -- the queue may no longer be in use
    call('EXPIRE', list, R.listener_ttl / 1000000)
  end
end

-- awaited: ids of jobs -> the listeners that wait for their end, without separators. The entry is removed when the job ends.
local MAX_LISTENERS = 1000

-- Registers that the listener waits for the job's end. Returns false if the job has ended.
local function await_end(id, listener)
  local stored = call('MGET', P .. 'j:' .. id)[1] -- GET fails if another program has changed its type
  if not stored or byte(stored) % 64 > F.running_status then
    return false
  end
  local known = call('HGET', P .. 'awaited', id) or ''
  if not string.find(known, listener, 1, true) then
    call('HSET', P .. 'awaited', id, sub(known .. listener, -16 * MAX_LISTENERS))
  end
  return true
end

-- === part publish_ends =====================================================================================
-- The maximum size in bytes of a record that is sent to listeners. They have to read a larger one.
local MAX_SENT = 4096

-- Publishes the ends of jobs to the listeners that wait for them: one message for each listener, of ids and stored jobs.
local function publish_ends(ended)
  if #ended == 0 or call('EXISTS', P .. 'awaited') == 0 then
    return
  end
  local ids, keys, listeners_of = {}, {}, {}
  for first = 1, #ended, MAX_VALUES do
    for i, listeners in ipairs(call('HMGET', P .. 'awaited', unpack(ended, first, math.min(first + MAX_VALUES - 1, #ended)))) do
      if listeners then
        local n = #ids + 1
        ids[n], listeners_of[n] = ended[first + i - 1], listeners
        keys[n] = P .. 'j:' .. ids[n]
      end
    end
  end
  local messages = {}
  for n, stored in ipairs(get_all(keys)) do
    for listener in string.gmatch(listeners_of[n], '................') do
      append_to(messages, listener, ids[n])
      append_to(messages, listener, stored and #stored <= MAX_SENT and stored or '')
    end
  end
  in_portions('HDEL', P .. 'awaited', ids)
  for listener, message in pairs(messages) do
    call('PUBLISH', P .. 'n:' .. listener, '\0' .. cmsgpack.pack(message))
  end
end

-- === script arm ============================================================================================
-- Registers a listener for wake-ups. Arguments: topics; ids of jobs whose end is awaited; the listener.
-- Reply: {topics for which something has already happened, ids (one string) of jobs that have ended}.

local topics, ids, listener = given[1], given[2], given[3]

local function is_asked_to_stop(hex)
  local id = string.gsub(hex, '%x%x', function(byte)
    return string.char(tonumber(byte, 16))
  end)
  return #call('ZRANGE', P .. 'i:marked', '[' .. esc(id), '(' .. sub(esc(id), 1, -2) .. '\2', 'BYLEX', 'LIMIT', 0, 1) > 0
end

local available, ended = {}, {}
for _, topic in ipairs(topics) do
  local is_available
  if topic == 'due' then
    is_available = call('EXISTS', P .. 'i:due', P .. 'i:to_admit', P .. 'i:offers') > 0
    add_listener(P .. 'upkeepers', listener)
  elseif sub(topic, 1, 8) == 'session:' then -- its claims have named the listener
    is_available = is_asked_to_stop(sub(topic, 9))
  else
    local queue = topic == 'queues' and '' or sub(topic, 7)
    is_available = topic == 'queues' and call('EXISTS', P .. 'ready') == 1
      or topic ~= 'queues' and tonumber(call('HGET', P .. 'counts', F.ready_status .. queue) or 0) > 0
    if not is_available then
      add_listener(P .. 'waiting:' .. queue, listener)
    end
  end
  if is_available then
    available[#available + 1] = topic
  end
end
for _, id in ipairs(ids) do
  if not await_end(id, listener) then
    ended[#ended + 1] = id
  end
end
return { available, table.concat(ended) }
