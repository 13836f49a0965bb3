-- === script promote ========================================================================================
-- Makes due jobs READY. Arguments: revision, limit. Reply: how many, and when the next one is due, or false.

local rev, limit = unpack(given)
local found = call('ZRANGE', P .. 'i:due', 0, limit)
local now, keys, ready = enc(wall), {}, 0
while ready < math.min(limit, #found) and not is_less(now, sub(found[ready + 1], 1, 8)) do
  ready = ready + 1
  keys[ready] = P .. 'j:' .. sub(found[ready], 17)
end
for i, stored in ipairs(get_all(keys)) do
  local record = stored and touch(K.JOB, sub(found[i], 17), stored)
  local header = record and record.header
  if not header or header[F.status] > F.scheduled_status then -- another program has changed the record
    call('ZREM', P .. 'i:due', found[i])
    if record and not header then
      touched[#touched] = nil
      set_aside(record.id, stored)
    end
  else
    if header[F.status] == F.held_status then
      header[F.due_at] = now
    end
    tally(header[F.queue], header[F.status] == F.held_status and E.RELEASE or E.DUE, 1)
    header[F.status], record.rev = F.ready_status, rev
  end
end
flush()
local next_due = found[ready + 1]
return { ready, next_due and sub(next_due, 1, 8) or false }

-- === script aside ==========================================================================================
-- Sets aside the jobs among these that cannot be read. Arguments: ids, each with the queue in which it was READY, or false.

for i = 1, #given, 2 do
  local stored = get_all({ P .. 'j:' .. given[i] })[1]
  if stored then
    set_aside(given[i], stored, given[i + 1] and F.ready_status, given[i + 1])
  end
end
flush()

-- === script fade ===========================================================================================
-- Buries ended jobs that need not be kept, and forgets buried ones. Arguments: revision, limit, how many jobs a queue keeps at most, how
-- long a buried job is known. Reply: how many were buried, whether there are more, and the ids of jobs with ties, each after "t" or "f".

local rev, limit, max_kept, repeat_for = unpack(given)
local left, buried, taken = {}, 0, {}

local function bury(id, stored, is_surplus)
  local record = touch(K.JOB, id, stored)
  local header = record.header
  taken[id] = true
  if not header or header[F.status] <= F.running_status or header[F.status] == F.buried_status then
    touched[#touched] = nil
    return false
  elseif bit.band(header[F.flags], G.KEPT_APART) ~= 0 then
    touched[#touched] = nil
    left[#left + 1] = (is_surplus and 't' or 'f') .. id
    return true
  end
  buried = buried + 1
  tally(header[F.queue], E.DROP, 1)
  if is_surplus then
    tally(header[F.queue], W.DROPPED_OVER_CAP, 1)
  end
  local forgotten_at = dec(header[F.ended_at]) + repeat_for
  record.rev, record.sent, record.state, record.content = rev, nil, nil, nil
  header[F.status], header[F.cause], header[F.fade_at] = F.buried_status, false, enc(forgotten_at)
  record.header = forgotten_at > wall and header or nil
  return true
end

-- Returns the members of the oldest ended jobs of a queue, at most `number` of each status.
local function oldest(queue, number, statuses)
  local found, from = {}, 3 + #esc(queue)
  for _, status in ipairs(statuses) do
    local prefix = struct.pack('>I2', 32768 + status) .. esc(queue)
    for _, member in ipairs(call('ZRANGE', P .. 'i:ended', '[' .. prefix, '(' .. sub(prefix, 1, -2) .. '\2', 'BYLEX', 'LIMIT', 0, number)) do
      found[#found + 1] = member
    end
  end
  table.sort(found, function(one, other)
    return is_less(sub(one, from), sub(other, from))
  end)
  return found
end

-- Buries the jobs of members until `room` are buried or left, and forgets buried ones on the way. Returns how many members it checked.
local function bury_members(index, members, room, is_surplus)
  local keys, before = {}, buried + #left
  for i, member in ipairs(members) do
    keys[i] = P .. 'j:' .. sub(member, -16)
  end
  for i, stored in ipairs(get_all(keys)) do
    local id = sub(members[i], -16)
    if buried + #left - before == room then
      return i - 1
    elseif stored and byte(stored) % 64 == F.buried_status and not is_surplus then
      gone[#gone + 1] = keys[i]
      append_to(zrems, 'i:fading', members[i])
    elseif not stored or not taken[id] and not bury(id, stored, is_surplus) then
      call('ZREM', P .. 'i:' .. index, members[i]) -- another program has changed the record
      if stored then
        set_aside(id, stored)
      end
    end
  end
  return #members
end

local has_more, room = false, limit
for failed, statuses in pairs({ ['kept:0'] = { F.succeeded_status, F.cancelled_status }, ['kept:1'] = { F.failed_status } }) do
  call('ZREMRANGEBYSCORE', P .. failed, '-inf', 0)
  local crowded = call('ZRANGEBYSCORE', P .. failed, '(' .. max_kept, '+inf', 'WITHSCORES')
  for i = 1, #crowded, 2 do
    local surplus = tonumber(crowded[i + 1]) - max_kept
    has_more = has_more or surplus > room
    surplus = math.min(surplus, room)
    if surplus > 0 then
      bury_members('ended', oldest(crowded[i], surplus, statuses), surplus, true)
      room = room - surplus
    end
  end
end
flush()
-- After a burst, very many ids may be due to be forgotten, so a call checks only some of them.
local MAX_FORGOTTEN = 1000
room = limit - buried - #left
local fading = call('ZRANGE', P .. 'i:fading', '-', '(' .. enc(wall + 1), 'BYLEX', 'LIMIT', 0, room > 0 and room + MAX_FORGOTTEN or 1)
local looked_at = room > 0 and bury_members('fading', fading, room, false) or 0
flush()
return { buried, (has_more or looked_at < #fading or looked_at == room + MAX_FORGOTTEN) and 1 or 0, left }
