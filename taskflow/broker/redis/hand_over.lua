-- === script hand_over ======================================================================================
-- Ends runs of jobs with limits as SUCCEEDED, and hands their slots on: see [hot_limits] in seam.py.
--
-- arguments  revision; contents that were sent ahead; an array for each gate: its id, ids of jobs, fences (36 bytes), how long each ran
--            (8 bytes), microseconds to keep each, results
-- reply      a string with a byte for each run: "o" ended, "s" refused; then the gates that still have room although jobs wait there; or
--            "MISSING"

local rev, ahead = given[1], given[2]
if has_missing(ahead) then
  return redis.status_reply('MISSING')
end
local find, now = string.find, enc(wall)
local head_of_ready, head_of_ended, fades_after = char(F.ready_status) .. rev, char(F.succeeded_status) .. rev, {}
local passed = {} -- by queue: its name in members of indexes, and the numbers of jobs that became READY and that have ended
local function passed_in(queue)
  passed[queue] = passed[queue] or { name = esc(queue), readied = 0, ended = 0, is_paused = call('EXISTS', P .. 'q:' .. queue) == 1 }
  return passed[queue]
end

-- Changes a job that the fixed layout can't hold. A change is a field and its value.
local function change(id, stored, event, changes, result)
  local record = touch(K.JOB, id, stored)
  record.rev = rev
  tally(record.header[F.queue], event, 1)
  for k = 1, #changes, 2 do
    record.header[changes[k]] = changes[k + 1]
  end
  if result then
    record.content = held(id, rev, result)
  end
end

-- Returns the places in a job that waits: of its names, its `since`, its extra part, and whether that is AT_A_GATE.
local function places_in(stored)
  local queue, name, sent = struct.unpack('>I2I2I4', stored, L.lengths)
  local since_at = L.waiting + 1 + queue + name
  local extra_at = since_at + sent - 1
  return queue, since_at, extra_at, find(stored, AT_A_GATE, extra_at, true) == extra_at
end

-- Returns whether a waiting job needs only a slot of its gate to become READY.
local function may_pass(stored)
  if not stored or #stored > MAX_RECORD or byte(stored) ~= 64 + F.scheduled_status or #stored < L.waiting then
    return false
  end
  local queue, _, _, is_at_a_gate = places_in(stored)
  if bit.band(struct.unpack('>I2', stored, 10), G.FAIR + G.MANY_GATES) ~= 0
    or passed_in(sub(stored, L.waiting + 1, L.waiting + queue)).is_paused then
    return false
  elseif is_at_a_gate then
    return true
  end
  local is_read, _, _, state = pcall(decode, stored)
  return is_read and not state
end

local function ready(id, stored)
  local queue, since_at, extra_at, is_at_a_gate = places_in(stored)
  if not is_at_a_gate then
    return change(id, stored, E.DUE, { F.status, F.ready_status, F.gate, false, F.since, now })
  end
  local queue_name, priority = sub(stored, L.waiting + 1, L.waiting + queue), byte(stored, L.priority)
  local gate_at, position, its = extra_at + EXTRA_BYTES, sub(stored, L.place) .. id, passed_in(queue_name)
  values[#values + 1] = P .. 'j:' .. id
  values[#values + 1] = head_of_ready .. sub(stored, 10, since_at - 1) .. now .. sub(stored, since_at + 8, extra_at - 1)
    .. sub(stored, gate_at + 16)
  append_to(zrems, 'i:scheduled', its.name .. position)
  append_to(zrems, 'i:gated', esc(sub(stored, gate_at, gate_at + 15)) .. struct.pack('>I2', 32896 - priority) .. position)
  append_to(zadds, 'i:holding', its.name .. now .. sub(position, 9))
  record_ready(queue_name, priority - 128, position)
  its.readied = its.readied + 1
end

-- Returns whether a job is still in the run with this fence, and has no ties but limits.
local function is_limited_run(stored, fence)
  if not stored or #stored > MAX_RECORD then
    return false
  elseif byte(stored) == F.running_status and #stored >= L.running then
    local waiting_at = L.running + struct.unpack('>I2', stored, L.running - 2)
    return #stored >= waiting_at + L.waiting - 1 and find(stored, fence, 10, true) == 10
      and bit.band(struct.unpack('>I2', stored, waiting_at + 9), G.TIES) == G.LIMITED
  end
  local is_read, header = pcall(decode, stored)
  return is_read and header[F.status] == F.running_status and bit.band(header[F.flags], G.TIES) == G.LIMITED
    and header[F.epoch] .. header[F.session] .. header[F.claim] == '\128' .. sub(fence, 2)
end

local function finish(id, stored, fence, ran_for, keep_for, result)
  local fades = fades_after[keep_for] or enc(wall + keep_for)
  fades_after[keep_for] = fades
  if byte(stored) ~= F.running_status then
    change(id, stored, E.SUCCEED, { F.status, F.succeeded_status, F.settled, '\0' .. sub(fence, 2) .. '\0', F.session, false,
      F.claim, false, F.started_at, enc(wall - dec(ran_for)), F.ended_at, now, F.fade_at, fades }, result)
  else
    local waiting_at = L.running + struct.unpack('>I2', stored, L.running - 2)
    local seq, queue, name, sent = struct.unpack('>xxxxxxxxxxxc8xxxxxxxxI2I2I4', stored, waiting_at + 9)
    local names_at = waiting_at + L.waiting
    local content_at = names_at + queue + name + (sent > 0 and sent - 1 or 0)
    local its, former = passed_in(sub(stored, names_at, names_at + queue - 1)), nil
    if #stored == content_at + L.reference - 1 then
      former = apart(id, sub(stored, content_at))
    end
    its.ended_at = its.ended_at or struct.pack('>I2', 32768 + F.succeeded_status) .. its.name .. now
    its.ended = its.ended + 1
    result = held(id, rev, result)
    values[#values + 1] = P .. 'j:' .. id
    values[#values + 1] = head_of_ended .. sub(stored, 10, content_at - 1) .. now .. fades .. ran_for .. result
    append_to(hdels, sub(fence, 9, 24), sub(fence, 25))
    append_to(zadds, 'i:fading', fades .. id)
    append_to(zadds, 'i:ended', its.ended_at .. seq .. id)
    ended_ids[#ended_ids + 1] = id
    if former then
      gone[#gone + 1] = P .. 'c:' .. former
    end
  end
  local key = apart(id, result)
  if key then
    call('PERSIST', P .. 'c:' .. key)
  end
end

local headers = {} -- of gates, by their bytes, because many gates are alike: with 1,000 keys, this saves 7 % of the server's time
local function gate_header(stored)
  if not stored or #stored < 14 or #stored > MAX_RECORD then
    return false
  end
  local packed = sub(stored, 14, 13 + struct.unpack('>I4', stored, 10))
  if headers[packed] == nil then
    local is_read, header = pcall(decode_other, K.GATE, stored)
    headers[packed] = is_read and #header == FIELDS[K.GATE + 1] and header
  end
  return headers[packed]
end

-- Reads all gates and runs together, and then the jobs that wait at the gates.
local groups, keys, waiting_ids, waiting_keys = {}, {}, {}, {}
for g = 3, #given do
  keys[#keys + 1] = P .. 'g:' .. given[g][1]
  for _, id in ipairs(given[g][2]) do
    keys[#keys + 1] = P .. 'j:' .. id
  end
end
local stored, at = get_all(keys), 0
for g = 3, #given do
  local gate_id, ids, fences = given[g][1], given[g][2], given[g][3]
  local header = gate_header(stored[at + 1])
  local gate = { stored = stored[at + 1], header = header, number = 0, passing = 0, from = #waiting_ids }
  groups[g], at = gate, at + 1
  for i = 1, #ids do
    gate[i] = is_limited_run(stored[at + i], fences[i]) and stored[at + i] or false
    gate.number = gate.number + (gate[i] and 1 or 0)
  end
  at = at + #ids
  gate.taken, gate.most = header and dec(header[F.taken]) or 0, header and dec(header[F.most]) or 0
  if gate.taken < gate.number then
    gate.number = 0
  end
  local room = header and header[F.has_waiting] ~= 0 and math.min(gate.number, gate.most - gate.taken + gate.number) or 0
  if room > 0 then
    local begin = esc(gate_id)
    for _, member in ipairs(call('ZRANGE', P .. 'i:gated', '[' .. begin, '(' .. sub(begin, 1, -2) .. '\2', 'BYLEX', 'LIMIT', 0, room)) do
      local id = sub(member, -16)
      waiting_ids[#waiting_ids + 1], waiting_keys[#waiting_keys + 1] = id, P .. 'j:' .. id
      gate.passing = gate.passing + 1
    end
  end
end
local waiting, answers, opened = get_all(waiting_keys), {}, {}
for g = 3, #given do
  local gate, ids = groups[g], given[g][2]
  local header = gate.header
  for i = gate.from + 1, gate.from + gate.passing do
    gate.number = may_pass(waiting[i]) and gate.number or 0
  end
  for i = 1, #ids do
    local is_ended = gate.number > 0 and gate[i]
    answers[#answers + 1] = is_ended and 'o' or 's'
    if is_ended then
      finish(ids[i], gate[i], given[g][3][i], given[g][4][i], given[g][5][i], given[g][6][i])
    end
  end
  if gate.number > 0 then
    for i = gate.from + 1, gate.from + gate.passing do
      ready(waiting_ids[i], waiting[i])
    end
    local left = gate.taken + gate.passing - gate.number
    local is_open = header[F.has_waiting] ~= 0 and left < gate.most and 1 or 0
    if is_open == 1 then
      opened[#opened + 1] = given[g][1]
    end
    if left ~= gate.taken or is_open ~= header[F.is_open] then
      local record = touch(K.GATE, given[g][1], gate.stored)
      record.header[F.taken], record.header[F.is_open], record.rev = enc(left), is_open, rev
      if left <= 0 and header[F.has_waiting] == 0 and header[F.is_set] == 0 and not header[F.tat] then
        record.header = nil
      end
    end
  end
end
for queue, its in pairs(passed) do
  if its.readied > 0 then
    count(queue, F.scheduled_status, -its.readied)
    count(queue, F.ready_status, its.readied)
    record_readied(queue, its.readied)
    tally(queue, E.DUE, its.readied)
  end
  if its.ended > 0 then
    count(queue, F.running_status, -its.ended)
    count(queue, F.succeeded_status, its.ended)
    tally(queue, E.SUCCEED, its.ended)
  end
end
flush()
return { table.concat(answers), unpack(opened) }
