-- === part due_in ===========================================================================================
local NEVER = 2 ^ 53

-- Returns microseconds from `now` until the first entry of the index.
local function until_first(index, now)
  local first = call('ZRANGE', P .. index, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) - now or NEVER
end

local function has_dying()
  for _, id in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
    if call('EXISTS', P .. 'leases:' .. id) == 1 then
      return true
    end
  end
  return false
end

-- Returns microseconds until upkeep may have something to do, -1 if nothing waits for it.
local function due_in()
  if has_dying() or call('EXISTS', P .. 'crowded', P .. 'spoilt') > 0 then
    return 0
  end
  local wait = math.min(until_first('due', wall), until_first('expiring', wall), until_first('fade', wall), until_first('schedules', wall),
    until_first('alive', steady - 1))
  return wait == NEVER and -1 or math.max(0, wait)
end

-- === script upkeep =========================================================================================
-- Does what is due, up to a limit of moves. Arguments: limit; the listener, which waits for the next due time; whether to take ends.
-- Reply: readied, reaped, released, expired, dropped, microseconds until the next call, and for each record that was set aside its id, the
-- number of the field and the problem (unreadable.lua). If schedules are due, also what `offers` returns, and the server's time; else, if
-- ends follow, nothing twice. If ends are taken, also their ids, and how many were dropped.

local limit = given[1]

-- --- what is due --------------------------------------------------------------------------------------

-- Makes a scheduled job of the fixed layout (fields.py) ready: only the status changes. Returns the record, its queue, its priority and its
-- entry; nil for any other job.
local function ready_plainly(id, stored)
  if byte(stored) ~= S.SCHEDULED or #stored < L.waiting then
    return nil
  end
  local priority, queue, due = struct.unpack('>xbI4xxxxI8', stored)
  if due > wall then
    return nil
  end
  return string.char(S.READY) .. sub(stored, 2), queue, priority, sub(stored, L.place) .. id
end

-- The entries are in order of their due times.
local function append_ready(groups)
  for queue, of_queue in pairs(groups) do
    for priority, entries in pairs(of_queue) do
      local list, returned = ready_keys(queue .. ':' .. priority)
      append(list, returned, entries)
      call('ZADD', P .. 'priorities:' .. queue, -priority, priority)
      count(queue, S.SCHEDULED, -#entries)
      count(queue, S.READY, #entries)
      tally(queue, E.DUE, #entries)
      note_ready(queue, #entries)
    end
  end
end

local function ready_all(ids, stored)
  local values, groups, others = {}, {}, {}
  for i, id in ipairs(ids) do
    local new, queue, priority, entry
    if stored[i] then
      new, queue, priority, entry = ready_plainly(id, stored[i])
    end
    if new then
      values[#values + 1] = P .. 'j:' .. id
      values[#values + 1] = new
      add_to(groups, queue, priority, entry)
    else
      others[#others + 1] = id
    end
  end
  set_all(values)
  append_ready(groups)
  return #ids - #others, others
end

local function ready_due(left)
  local members = call('ZRANGEBYSCORE', P .. 'due', '-inf', wall, 'LIMIT', 0, math.min(left, MOST))
  if #members == 0 then
    return 0
  end
  local ids, keys, queues = {}, {}, {}
  for i, member in ipairs(members) do
    ids[i] = sub(member, 11)
    queues[ids[i]] = #member > 10 and struct.unpack('>I4', member, 7) or false
    keys[i] = P .. 'j:' .. ids[i]
  end
  call('ZREMRANGEBYRANK', P .. 'due', 0, #members - 1) -- the same members: the index is in order of time
  local moved, others = ready_all(ids, call('MGET', unpack(keys)))
  prefetch(others)
  for _, id in ipairs(others) do
    local job, note = load(id), stand_ins[id]
    if job and job[F.status] == S.SCHEDULED then
      enter(id, job, E.DUE)
      moved = moved + 1
    elseif note then
      note[3], note[4] = note[3] or S.SCHEDULED, note[4] or queues[id]
      report_spoilt(id, note)
    else -- every other move removes the job from this index, so they disagree
      recount()
    end
  end
  flush()
  return moved
end

-- --- dead sessions ------------------------------------------------------------------------------------

-- Declares sessions dead before it releases leases: a claim in between then finds its session dead, and no lease is forgotten.
local function reap()
  local lapsed = call('ZRANGEBYSCORE', P .. 'alive', '-inf', '(' .. string.format('%.0f', steady))
  for _, id in ipairs(lapsed) do
    kill_session(id)
  end
  return #lapsed
end

local function forget_session(session)
  local dead_at = tonumber(call('HGET', session_key(session), 'dead_at')) or 0
  if dead_at < wall - R.repeat_for and call('EXISTS', P .. 'leases:' .. session) == 0 then
    call('ZREM', P .. 'dead', session)
    call('DEL', session_key(session), P .. 'stopping:' .. session)
  end
end

local function release_leases(left)
  local released = 0
  for _, session in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
    if left > released then
      local about = call('HMGET', session_key(session), 'spared', 'died_of', 'fingerprint')
      released = released + end_dead_leases(session, left - released, about[1], about[2], about[3])
    end
    write_released()
    forget_session(session)
  end
  flush()
  return released
end

-- --- expiry -------------------------------------------------------------------------------------------

local function expire(left)
  local moved = 0
  while moved < left do
    local ids = call('ZRANGEBYSCORE', P .. 'expiring', '-inf', wall, 'LIMIT', 0, left - moved)
    if #ids == 0 then
      break
    end
    in_portions('ZREM', P .. 'expiring', ids)
    prefetch(ids)
    for _, id in ipairs(ids) do
      local job = load(id)
      if job and is_waiting(job) and job[F.expires_at] and job[F.expires_at] <= wall then
        finish(id, job, E.EXPIRE, S.CANCELLED, W.EXPIRED)
        moved = moved + 1
      end
    end
  end
  flush()
  return moved
end

-- --- ended jobs that need not be kept ---------------------------------------------------------------

-- The maximum number of ids that one call looks at besides its moves. Each takes a little time.
local ids_left = 600

-- Buries the first `number` jobs that the queue keeps. Returns how many.
local function drop_oldest(queue, failed, number)
  local members = call('ZRANGE', kept_key(queue, failed), 0, number - 1)
  local ids = {}
  for i, member in ipairs(members) do
    ids[i] = string.sub(member, 7)
  end
  prefetch(ids)
  local dropped = 0
  for i, id in ipairs(ids) do
    local job = load(id)
    if job and has_ended(job) and not stand_ins[id] then
      bury(id, job)
      dropped = dropped + 1
    else
      call('ZREM', kept_key(queue, failed), members[i])
    end
  end
  return dropped
end

local function drop_over_cap(left)
  local moved = 0
  for _, member in ipairs(call('ZRANGE', P .. 'crowded', 0, -1)) do
    local name, failed = string.sub(member, 1, -3), string.sub(member, -1)
    local queue = tonumber(call('HGET', P .. 'names', 'q:' .. name) or -1)
    local counted = 0
    for _, code in ipairs(failed == '1' and { S.FAILED } or { S.SUCCEEDED, S.CANCELLED }) do
      counted = counted + (call('HGET', P .. 'counts', queue .. ':' .. code) or 0)
    end
    local over = counted - R.kept_per_queue
    local wanted = math.min(over, left - moved)
    local dropped = wanted > 0 and drop_oldest(queue, failed, wanted) or 0
    if dropped > 0 then
      tally(queue, W.DROPPED_OVER_CAP, dropped)
    end
    moved = moved + dropped
    if over - dropped <= 0 then
      call('ZREM', P .. 'crowded', member)
    end
  end
  flush()
  return moved
end

local function forget(ids)
  for _, id in ipairs(ids) do
    cache[id] = false
    changed[id] = nil
  end
  unlink_all('j:', ids)
  in_portions('ZREM', P .. 'fade', ids)
end

-- An ended job becomes a bare id once it need not be kept any longer, and disappears when no resent call can refer to it any more. If the
-- limit is used up, only those ids go whose time was before that of the last job buried.
local function drop_faded(left)
  local moved, is_last = 0, false
  while not is_last and moved < left and ids_left > 0 do
    local wanted = left - moved
    local found = call('ZRANGEBYSCORE', P .. 'fade', '-inf', wall, 'WITHSCORES', 'LIMIT', 0, wanted)
    is_last = #found < 2 * wanted
    ids_left = ids_left - #found / 2
    local ids, forgotten, again = {}, {}, {}
    for i = 1, #found, 2 do
      ids[#ids + 1] = found[i]
    end
    prefetch(ids)
    local last_score, last_id
    for i, id in ipairs(ids) do
      local job = load(id)
      if job and has_ended(job) and job[F.fade_at] <= wall then
        bury(id, job)
        moved = moved + 1
        last_score, last_id = tonumber(found[2 * i]), id
        if job[F.ended_at] + R.repeat_for <= wall then
          again[#again + 1] = id
        end
      elseif not job or (job[F.status] == S.BURIED and job[F.ended_at] + R.repeat_for <= wall) then
        forgotten[#forgotten + 1] = id
      else
        call('ZREM', P .. 'fade', id)
      end
    end
    for _, id in ipairs(again) do
      local forget_at = load(id)[F.ended_at] + R.repeat_for
      if moved < left or forget_at < last_score then
        forgotten[#forgotten + 1] = id
      end
    end
    flush()
    forget(forgotten)
  end
  return moved
end

local function drop(left)
  local moved = drop_over_cap(left)
  return moved + drop_faded(left - moved)
end

-- --- unreadable records -----------------------------------------------------------------------------

-- Sets aside the records that were found unreadable (jobs.lua). Returns id, field, problem, ... for the log.
local function set_spoilt_aside()
  local replaced, notes = {}, call('HSCAN', P .. 'spoilt', 0, 'COUNT', 100)[2]
  for i = 1, #notes, 2 do
    local id = notes[i]
    local is_read, note = pcall(cmsgpack.unpack, notes[i + 1])
    note = is_read and type(note) == 'table' and note or {}
    if set_aside(id, note) then
      replaced[#replaced + 1], replaced[#replaced + 2], replaced[#replaced + 3] = id, note[1] or 0, note[2] or ''
    end
  end
  if #notes > 0 then
    flush()
  end
  return replaced
end

-- --- the next call ----------------------------------------------------------------------------------

-- Returns when the session should call again. Each of n sessions calls once in n periods, all of them if something falls due before.
local function next_in(until_check)
  local wait = R.upkeep_every * math.max(1, call('ZCARD', P .. 'alive'))
  return math.max(0, math.min(wait, until_check, until_first('due', wall), until_first('alive', steady - 1)))
end

spare_after_outage()
check_counts()
find_lost_queues()
check_indexes_in_turn()
local reaped = reap()
local done, aside = {}, set_spoilt_aside()
local left = limit
for i, duty in ipairs({ ready_due, release_leases, expire, drop }) do
  done[i] = duty(math.max(0, left))
  left = left - done[i]
end
local until_check, offered = until_first('schedules', wall), nil
if until_check <= 0 then
  offered = offers()
  until_check = until_first('schedules', wall)
end
add_listener(P .. 'upkeepers', given[2])
pass_on_late_nudges()
local ended, ends_dropped
local has_more = false
if given[3] then
  ended, ends_dropped = call('LRANGE', P .. 'ends', 0, R.max_ends - 1), tonumber(call('HGET', P .. 'meta', 'ends_dropped') or 0)
  if #ended > 0 then
    call('LTRIM', P .. 'ends', #ended, -1)
    has_more = call('EXISTS', P .. 'ends') == 1
  end
  if ends_dropped > 0 then
    call('HDEL', P .. 'meta', 'ends_dropped')
  end
  offered = offered or false
end
local again_in = (left <= 0 or ids_left <= 0 or #aside > 0 or has_more) and 0 or next_in(until_check)
return { done[1], reaped, done[2], done[3], done[4], again_in, aside, offered, offered and wall, ended, ends_dropped }
