-- Wake-ups. Each listener (one for each event loop of a process) subscribes to a separate channel, n:ID, and hears only what concerns it.

-- === part nudge ============================================================================================
-- Sends a message to a listener. Returns false if no process receives it, because the listener's is gone.
local function publish(listener, message)
  return call('PUBLISH', P .. 'n:' .. listener, message) > 0
end

-- Notes that a listener is nudged now. Returns false if it was nudged a moment ago, and has not claimed since.
local function note_nudge(listener)
  if call('ZADD', P .. 'nudged', 'NX', wall, listener) == 1 then
    return true
  end
  local nudged_at = tonumber(call('ZSCORE', P .. 'nudged', listener) or 0)
  return wall - nudged_at > R.passed_on_after and call('ZADD', P .. 'nudged', wall, listener) == 0
end

-- Takes up to `wanted` listeners off a list, the one that came last first, and nudges them. Returns how many are still wanted.
-- A listener of several queues stands in several lists. One that was nudged for another queue a moment ago is passed over.
local function nudge_from(list, topic, wanted)
  while wanted > 0 do
    local found = call('ZPOPMAX', list, math.min(wanted, MOST))
    if #found == 0 then
      break
    end
    for i = 1, #found, 2 do
      if note_nudge(found[i]) then
        if publish(found[i], topic) then
          wanted = wanted - 1
        else
          call('ZREM', P .. 'nudged', found[i])
        end
      end
    end
  end
  return wanted
end

-- Nudges up to `wanted` listeners that wait for jobs of this queue. Returns how many are still wanted.
local function nudge(name, wanted)
  if call('EXISTS', P .. 'q:' .. name) == 1 then
    return wanted
  end
  wanted = nudge_from(P .. 'waiting:' .. name, 'queue:' .. name, wanted)
  return nudge_from(P .. 'waiting:', 'queues', wanted)
end

-- Nudges up to `wanted` listeners of those queues that have ready jobs now: of these names, or of any queue.
local function nudge_for_ready(wanted, names)
  for _, name in ipairs(names or call('ZRANGE', P .. 'ready', 0, 999)) do
    if wanted > 0 and call('ZSCORE', P .. 'ready', name) then
      wanted = nudge(name, wanted)
    end
  end
end

-- A listener whose process has been stopped, or whose worker has no room, does not claim after its nudge: others are nudged instead.
local function pass_on_late_nudges()
  local late = call('ZRANGEBYSCORE', P .. 'nudged', '-inf', wall - R.passed_on_after, 'LIMIT', 0, 100)
  if #late > 0 then
    call('ZREM', P .. 'nudged', unpack(late))
    nudge_for_ready(#late)
  end
end

-- Nudges as many listeners as jobs became ready: `readied` has their numbers by the names of queues.
local function nudge_for(readied)
  pass_on_late_nudges()
  for name, jobs in pairs(readied) do
    nudge(name, jobs)
  end
end

-- Some of the listeners that wait for the next due time hear that it is earlier now.
local function nudge_upkeepers()
  local wanted = R.upkeepers
  repeat
    local found = call('ZPOPMAX', P .. 'upkeepers', 1)
    wanted = #found == 0 and 0 or wanted - (publish(found[1], 'due') and 1 or 0)
  until wanted == 0
end

-- === part wake_listeners ===================================================================================
-- Names of queues -> the number of their jobs that became ready in this call.
local readied, ended_ids = {}, {}

local function note_readied(queue, jobs)
  readied[queue] = (readied[queue] or 0) + jobs
end

local function wake_listeners()
  local lists, waiting = { P .. 'waiting:' }, 0
  for name in pairs(readied) do
    lists[#lists + 1] = P .. 'waiting:' .. name
  end
  for first = 2, #lists, MOST do
    waiting = waiting + call('EXISTS', lists[1], unpack(lists, first, math.min(first + MOST - 1, #lists)))
  end
  if waiting > 0 then
    nudge_for(readied)
  end
  readied = {}
end

-- === part listeners ========================================================================================
local function add_listener(list, listener)
  call('ZREMRANGEBYSCORE', list, '-inf', wall - R.gone_after)
  call('ZADD', list, wall, listener)
end

-- === part await_end ========================================================================================
-- awaited: ids of jobs -> the listeners that wait for their end, without separators. The entry goes when the job ends.
local MOST_LISTENERS = 1000

local function await_end(id, listener)
  if call('HSETNX', P .. 'awaited', id, listener) == 0 then
    local known = call('HGET', P .. 'awaited', id)
    if not string.find(known, listener, 1, true) then
      call('HSET', P .. 'awaited', id, sub(known .. listener, -16 * MOST_LISTENERS))
    end
  end
end

-- === part publish_ends =====================================================================================
-- Bytes. A larger record is not sent to the listeners: they read it.
local LARGEST_SENT = 4096

-- Publishes the ends of jobs to the listeners that wait for them: one message for each listener, of ids and stored jobs.
local function publish_ends(ended)
  if #ended == 0 or call('EXISTS', P .. 'awaited') == 0 then
    return
  end
  local ids, keys, listeners_of = {}, {}, {}
  for first = 1, #ended, MOST do
    for i, listeners in ipairs(call('HMGET', P .. 'awaited', unpack(ended, first, math.min(first + MOST - 1, #ended)))) do
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
      append_to(messages, listener, stored and #stored <= LARGEST_SENT and stored or '')
    end
  end
  in_portions('HDEL', P .. 'awaited', ids)
  for listener, message in pairs(messages) do
    call('PUBLISH', P .. 'n:' .. listener, '\0' .. cmsgpack.pack(message))
  end
end

-- === script arm ============================================================================================
-- Asks for wake-ups. Arguments: topics; ids of jobs whose end is awaited; the listener; the number of nudges that it passes on to others,
-- because nothing in its process waits for them any more.
-- Reply: {topics that have something already, ids (one string) of jobs that have ended}.

local topics, ids, listener, unused = given[1], given[2], given[3], given[4]

local function has_ready(name)
  return tonumber(call('HGET', P .. 'counts', F.ready_status .. name) or 0) > 0
end

local function is_asked_to_stop(hex)
  local id = string.gsub(hex, '%x%x', function(byte)
    return string.char(tonumber(byte, 16))
  end)
  return #call('ZRANGE', P .. 'i:marked', '[' .. esc(id), '(' .. sub(esc(id), 1, -2) .. '\2', 'BYLEX', 'LIMIT', 0, 1) > 0
end

local available, ended = {}, {}
for _, topic in ipairs(topics) do
  local is_available = false
  if topic == 'queues' then
    is_available = call('EXISTS', P .. 'ready') == 1
    if not is_available then
      add_listener(P .. 'waiting:', listener)
    end
  elseif topic == 'due' then
    is_available = call('EXISTS', P .. 'i:due', P .. 'i:offers') > 0
    add_listener(P .. 'upkeepers', listener)
  elseif sub(topic, 1, 6) == 'queue:' then
    is_available = has_ready(sub(topic, 7))
    if not is_available then
      add_listener(P .. 'waiting:' .. sub(topic, 7), listener)
    end
  elseif sub(topic, 1, 8) == 'session:' then -- its claims have named the listener
    is_available = is_asked_to_stop(sub(topic, 9))
  end
  if is_available then
    available[#available + 1] = topic
  end
end
if unused > 0 then
  call('ZREM', P .. 'nudged', listener)
  nudge_for_ready(unused)
end
for _, id in ipairs(ids) do
  local stored = call('GET', P .. 'j:' .. id)
  if stored and byte(stored) % 64 <= F.running_status then
    await_end(id, listener)
  else
    ended[#ended + 1] = id
  end
end
return { available, table.concat(ended) }
