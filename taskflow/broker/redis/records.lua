-- Stored records.
--
-- The first byte of a job is its status in the fixed layout, or else 64 plus its status. For other kinds it is 64. The revision follows.
--
-- SCHEDULED, READY     flags (2), priority + 128 (1), due_at (8), seq (8), created_at (8), the lengths of queue, name (2 each) and `sent` (4;
--                      plus 1, 0 if there is none), and these, with `member` before `sent` if the flag MEMBER is set; then the payload
-- RUNNING              fence (epoch, session, claim: 36), claimed_at (8), claimed_steady (8), worker (after its length in 2), then the whole
--                      former record
-- SUCCEEDED, BURIED    the same without the payload; then ended_at, fade_at, how long it ran (8 each), and the result
-- 64 and more, jobs    like a waiting job up to `sent`, then EXTRA below; then worker, `settled`, `cause`, `gate`, `member`, the values of
--                      entries as msgpack, `state` and content
-- 64, other kinds      a msgpack array of the header's fields, in their order, after its length (4), with the values of entries at its end;
--                      then `sent`, `state` and content, each after its length plus 1 (4), 0 if there is none
--
-- `sent` of an ADMITTED job begins with `since` (8).
--
-- The fixed layout holds jobs that wait for their first run, are in it, or have succeeded in it. They have no state and no expiry. Claims
-- and successes cut and join their records as strings.

-- === part records ==========================================================================================
local ZERO = enc(0)
-- By kind plus 1. A name of the form L.x stands for its value wherever it occurs, so each use of a table would create it again.
local PREFIXES, FIELDS, TYPES = L.prefixes, L.fields, L.types
local NONE = '\0\0\0\0\0\0\0\0'

-- Returns whether another program has changed the name of a queue: it then has bytes that never occur in UTF-8.
local function is_spoilt(queue)
  return string.find(queue, '[\192\193\245-\255]') ~= nil
end

-- Decodes a record in the fixed layout of a waiting job that begins at `at`. Returns header, `sent`, and the place of the content.
local function decode_waiting(stored, at)
  local flags, priority, due, seq, created, queue, name, sent = struct.unpack('>I2Bc8c8c8I2I2I4', stored, at + 9)
  local names_at = at + L.waiting
  local queue_at, name_at = names_at + queue, names_at + queue + name
  local is_member = byte(stored, at) < 64 and bit.band(flags, G.MEMBER) ~= 0
  local sent_at = name_at + (is_member and L.member or 0)
  local ends_at = sent_at + math.max(0, sent - 1)
  if #stored < ends_at - 1 then
    error('it is too short')
  end
  local since, sent_part = nil, sent > 0 and sub(stored, sent_at, ends_at - 1) or nil
  if sent > 8 and bit.band(flags, G.ADMITTED) ~= 0 then
    since, sent_part = sub(sent_part, 1, 8), sent > 9 and sub(sent_part, 9) or nil
  end
  local header = { byte(stored, at), flags, priority - 128, sub(stored, names_at, queue_at - 1), sub(stored, queue_at, name_at - 1), seq,
    created, due, false, ZERO, ZERO, false, false, false, false, false, false, false, false, false, false, false, false, false, false }
  header[F.member] = is_member and sub(stored, name_at, sent_at - 1)
  header[F.since] = since ~= NONE and since or false
  return header, sent_part, ends_at
end

-- Returns `sent` as a record holds it.
local function sent_of(header, sent)
  return bit.band(header[F.flags], G.ADMITTED) ~= 0 and (header[F.since] or NONE) .. (sent or '') or sent
end

-- expires_at, awaits, epoch, claimed_at, claimed_steady, started_at, ended_at, fade_at, session, claim, and the lengths of the parts that
-- follow plus 1, or 0 for absent parts. An absent number is NONE. Only RUNNING jobs have a session and a claim.
-- AT_A_GATE begins this part of a job that has waited at a gate only: the lengths of its gate and content follow.
local EXTRA, EXTRA_BYTES = '>c8c8c8c8c8c8c8c8c16c12I2I2I2I2I2I4I4I4', 114
local NO_LEASE = string.rep('\0', 28)
local AT_A_GATE = NONE .. ZERO .. ZERO .. string.rep(NONE, 5) .. NO_LEASE .. '\0\0\0\0\0\0\0\17' .. string.rep('\0', 10)

local function decode_extra(stored)
  local status = byte(stored) - 64
  local header, sent, at = decode_waiting(stored, 1)
  local expires, awaits, epoch, claimed, claimed_steady, started, ended, fades, session, claim, worker, settled, cause, gate, member,
    entries, state, content = struct.unpack(EXTRA, stored, at)
  at = at + EXTRA_BYTES
  local function take(length)
    if length == 0 then
      return false
    end
    at = at + length - 1
    return sub(stored, at - length + 1, at - 1)
  end
  header[F.status], header[F.awaits], header[F.epoch] = status, awaits, epoch
  header[F.expires_at], header[F.claimed_at] = expires ~= NONE and expires, claimed ~= NONE and claimed
  header[F.claimed_steady], header[F.started_at] = claimed_steady ~= NONE and claimed_steady, started ~= NONE and started
  header[F.ended_at], header[F.fade_at] = ended ~= NONE and ended, fades ~= NONE and fades
  if status == F.running_status then
    header[F.session], header[F.claim] = session, claim
  end
  header[F.worker], header[F.settled], header[F.cause], header[F.gate] = take(worker), take(settled), take(cause), take(gate)
  header[F.member] = take(member)
  entries = take(entries)
  header[F.entries] = entries and cmsgpack.unpack(entries)
  state, content = take(state), take(content)
  if at ~= #stored + 1 or status > F.buried_status or status == F.running_status and not header[F.claimed_steady]
    or status > F.running_status and not (header[F.ended_at] and header[F.fade_at]) then
    error('it is no job')
  end
  return header, sent, state or nil, content or nil
end

local function encode_extra(rev, header, sent, state, content)
  local queue, name, worker, settled = header[F.queue], header[F.job], header[F.worker], header[F.settled]
  local cause, gate, member = header[F.cause], header[F.gate], header[F.member]
  sent = sent_of(header, sent)
  local entries = header[F.entries] and cmsgpack.pack(header[F.entries])
  return char(64 + header[F.status]) .. rev .. struct.pack('>I2B', header[F.flags], header[F.priority] + 128) .. header[F.due_at]
    .. header[F.seq] .. header[F.created_at] .. struct.pack('>I2I2I4', #queue, #name, sent and #sent + 1 or 0) .. queue .. name
    .. (sent or '') .. (header[F.expires_at] or NONE) .. header[F.awaits] .. header[F.epoch] .. (header[F.claimed_at] or NONE)
    .. (header[F.claimed_steady] or NONE) .. (header[F.started_at] or NONE) .. (header[F.ended_at] or NONE) .. (header[F.fade_at] or NONE)
    .. (header[F.session] and header[F.session] .. header[F.claim] or NO_LEASE)
    .. struct.pack('>I2I2I2I2I2I4I4I4', worker and #worker + 1 or 0, settled and #settled + 1 or 0, cause and #cause + 1 or 0,
      gate and #gate + 1 or 0, member and #member + 1 or 0, entries and #entries + 1 or 0, state and #state + 1 or 0, content and #content + 1 or 0)
    .. (worker or '') .. (settled or '') .. (cause or '') .. (gate or '') .. (member or '') .. (entries or '') .. (state or '') .. (content or '')
end

-- Decodes a record of another kind. A type is a letter, in upper case if the field is always present.
local function decode_other(kind, stored)
  local length = struct.unpack('>I4', stored, 10)
  local header, parts, at = cmsgpack.unpack(sub(stored, 14, 13 + length)), {}, 14 + length
  for i = 1, 3 do
    local size = struct.unpack('>I4', stored, at)
    at = at + 4
    if size > 0 then
      parts[i] = sub(stored, at, at + size - 2)
      at = at + size - 1
    end
  end
  local types = TYPES[kind + 1]
  for field = 1, #types do
    local of_type, value, is_right = sub(types, field, field), header[field], nil
    if of_type == 'n' or of_type == 'N' then
      is_right = type(value) == 'string' and #value == 8
    elseif of_type == 's' or of_type == 'S' then
      is_right = type(value) == 'number' and value % 1 == 0 and value >= -32768 and value < 32768
    else
      is_right = type(value) == 'string'
    end
    if not is_right and (value ~= false or of_type < 'a') then
      error('it is no record')
    end
  end
  return header, parts[1], parts[2], parts[3]
end

-- Returns header, `sent`, `state` and content of a job. Raises an error if they cannot be read.
local function decode(stored)
  local first = byte(stored)
  if first >= 64 then
    return decode_extra(stored)
  end
  if first < F.running_status then
    local header, sent, at = decode_waiting(stored, 1)
    return header, sent, nil, sub(stored, at)
  end
  local epoch, session, claim, claimed, claimed_steady, worker = struct.unpack('>xc7c16c12c8c8I2', stored, 10)
  local waiting_at = L.running + worker
  local header, sent, at = decode_waiting(stored, waiting_at)
  header[F.status], header[F.epoch], header[F.worker] = first, '\128' .. epoch, sub(stored, L.running, waiting_at - 1)
  header[F.claimed_at], header[F.claimed_steady] = claimed, claimed_steady
  if first == F.running_status then
    header[F.session], header[F.claim] = session, claim
    return header, sent, nil, sub(stored, at)
  end
  local ended, fades, ran_for = struct.unpack('>c8c8c8', stored, at)
  header[F.settled] = '\0' .. epoch .. session .. claim .. '\0'
  header[F.ended_at], header[F.fade_at], header[F.started_at] = ended, fades, enc(dec(ended) - dec(ran_for))
  if first == F.buried_status then
    return header, nil, nil, nil
  end
  return header, sent, nil, sub(stored, at + 24)
end

-- Returns whether the fixed layout can hold a waiting job.
local function is_plain(header, sent, state, content)
  local status = header[F.status]
  return (status == F.ready_status or status == F.scheduled_status) and content and not state and header[F.awaits] == ZERO
    and header[F.epoch] == ZERO and not header[F.expires_at] and not header[F.worker] and not header[F.settled] and not header[F.claimed_at]
    and not header[F.started_at] and not header[F.cause] and not header[F.gate] and not header[F.entries]
    and (header[F.member] and bit.band(header[F.flags], bit.bnot(G.MEMBER)) < G.MARKED and #header[F.member] == L.member
      and bit.band(header[F.flags], G.MEMBER) ~= 0 or not header[F.member] and bit.band(header[F.flags], G.MEMBER) == 0)
end

local function part(bytes)
  return bytes and struct.pack('>I4', #bytes + 1) .. bytes or '\0\0\0\0'
end

local function encode(kind, rev, header, sent, state, content)
  if kind ~= K.JOB then
    local packed = cmsgpack.pack(header)
    return '\064' .. rev .. struct.pack('>I4', #packed) .. packed .. part(sent) .. part(state) .. part(content)
  elseif not is_plain(header, sent, state, content) then
    return encode_extra(rev, header, sent, state, content)
  end
  local queue, name = header[F.queue], header[F.job]
  sent = sent_of(header, sent)
  return char(header[F.status]) .. rev .. struct.pack('>I2B', header[F.flags], header[F.priority] + 128) .. header[F.due_at]
    .. header[F.seq] .. header[F.created_at] .. struct.pack('>I2I2I4', #queue, #name, sent and #sent + 1 or 0) .. queue .. name
    .. (header[F.member] or '') .. (sent or '') .. content
end

-- Returns content as a record stores it. Large content, which a full server receives within the call, is stored separately here.
local function held(id, rev, content)
  if content and #content > 65536 then
    call('SET', P .. 'c:' .. id .. rev, content)
    return L.mark .. struct.pack('>I4', #content) .. rev
  end
  return content
end

-- Returns the key, after "c:", of content that is stored separately; nil for any other.
local function apart(id, content)
  if content and #content == L.reference and sub(content, 1, 2) == L.mark then
    return id .. sub(content, 7)
  end
end

-- === part places ===========================================================================================
-- Inverts the bytes of a number, so that they sort in descending order.
local function falling(bytes)
  return (string.gsub(bytes, '.', function(each)
    return char(255 - byte(each))
  end))
end

-- PLACES[kind + 1](header, id) returns the members of the record, each after the name of its index.
local PLACES = { L.places }

-- === part changes ==========================================================================================
-- Changes of records are collected, and flush() writes them with all indexes, counts and wake-ups.

local touched = {}
local values, gone, zadds, zrems, hsets, hdels, readied_now, queues_resumed = {}, {}, {}, {}, {}, {}, {}, {}
-- Names of queues -> the number of their jobs that became READY; and the ids of jobs that have ended.
local readied, ended_ids = {}, {}

local function record_readied(queue, jobs)
  readied[queue] = (readied[queue] or 0) + jobs
end

-- Returns whether a job is in no index except those of READY jobs and leases, which are written by hand.
local function is_nowhere(header)
  return (header[F.status] == F.ready_status or header[F.status] == F.running_status) and header[F.flags] < G.MARKED
    and not header[F.expires_at] and not header[F.member] and not header[F.entries]
end

-- Returns a record to change. Its `header` is nil if there is no record, or if it cannot be read and so is in no index.
local function touch(kind, id, stored)
  local record
  local is_read, header, sent, state, content
  if stored and #stored <= MAX_RECORD then
    if kind == K.JOB then
      is_read, header, sent, state, content = pcall(decode, stored)
    else
      is_read, header, sent, state, content = pcall(decode_other, kind, stored)
    end
  end
  if not is_read or type(header) ~= 'table' or #header ~= FIELDS[kind + 1] then
    record = { kind = kind, id = id, stored = stored, is_unread = stored and true, before = nil }
  elseif kind ~= K.JOB then
    record = { kind = kind, id = id, stored = stored, header = header, sent = sent, state = state, content = content,
      content_before = content, before = nil }
    record.before = PLACES[kind + 1](header, id)
  else
    local status = header[F.status]
    local is_ready = status == F.ready_status
    record = { kind = kind, id = id, stored = stored, header = header, sent = sent, state = state, content = content,
      content_before = content, status = status, queue = header[F.queue], priority = header[F.priority],
      place = is_ready and header[F.due_at] .. header[F.seq], session = header[F.session], claim = header[F.claim],
      before = not is_nowhere(header) and PLACES[1](header, id) or nil,
      rev = nil, is_new = nil, request = nil }
  end
  touched[#touched + 1] = record
  return record
end


-- Registers a job that has become READY, or is READY at a new place.
local function record_ready(queue, priority, entry)
  local of_queue = readied_now[queue]
  if not of_queue then
    of_queue = {}
    readied_now[queue] = of_queue
  end
  append_to(of_queue, priority, entry)
end

local function move_job(record, header)
  local id, was, status = record.id, record.status, header and header[F.status]
  local queue, place = header and header[F.queue], status == F.ready_status and header[F.due_at] .. header[F.seq]
  if was == F.ready_status and record.place and not (status == was and place == record.place and queue == record.queue
      and header[F.priority] == record.priority) then
    append_to(zrems, 'back:' .. record.priority .. ':' .. record.queue, record.place .. id) -- in the list it becomes stale
  end
  if was == F.running_status and record.session and not (status == was and header[F.claim] == record.claim and header[F.session] == record.session) then
    append_to(hdels, record.session, record.claim)
  end
  if status == F.ready_status and not (was == status and place == record.place and queue == record.queue
      and header[F.priority] == record.priority) then
    record_ready(queue, header[F.priority], place .. id)
  elseif status == F.running_status then
    append_to(hsets, header[F.session], header[F.claim])
    append_to(hsets, header[F.session], id)
  end
  if was ~= status or queue ~= record.queue then
    if was then
      count(record.queue, was, -1)
    end
    if status then
      count(queue, status, 1)
    end
  end
  if status == F.ready_status and was ~= status then
    record_readied(queue, 1)
  elseif (not status or status > F.running_status) and (record.is_new or was and was <= F.running_status) then
    ended_ids[#ended_ids + 1] = id
  end
end

-- Registers the changes in the indexes. It compares all pairs, because hardly any record has more than a few places.
local function record_places(before, after)
  local stays = {}
  for i = 1, #after, 2 do
    for k = 1, #before, 2 do
      if before[k] == after[i] and before[k + 1] == after[i + 1] then
        stays[i], stays[-k] = true, true
      end
    end
    if not stays[i] then
      append_to(zadds, 'i:' .. after[i], after[i + 1])
    end
  end
  for k = 1, #before, 2 do
    if not stays[-k] then
      append_to(zrems, 'i:' .. before[k], before[k + 1])
    end
  end
end

local function write_record(record)
  local kind, id, header = record.kind, record.id, record.header
  if not header and (not record.stored or record.is_unread) then -- there is nothing to write or remove
    return
  end
  local key = P .. PREFIXES[kind + 1] .. id
  if header then
    values[#values + 1] = key
    values[#values + 1] = encode(kind, record.rev or sub(record.stored, 2, 9), header, record.sent, record.state, record.content)
  else
    gone[#gone + 1] = key
  end
  local former = apart(id, record.content_before)
  if former and (not header or record.content ~= record.content_before) then
    gone[#gone + 1] = P .. 'c:' .. former
  end
  record_places(record.before or {}, header and not (kind == K.JOB and is_nowhere(header)) and PLACES[kind + 1](header, id) or {})
  if kind == K.JOB then
    move_job(record, header)
  elseif kind == K.QUEUE then
    queues_resumed[#queues_resumed + 1] = id
  elseif kind == K.SESSION then
    if not header then
      gone[#gone + 1] = P .. 'r:' .. id
    elseif record.request then
      values[#values + 1] = P .. 'r:' .. id
      values[#values + 1] = record.request
    end
  end
end

local function write_leases()
  for session, claims in pairs(hdels) do
    in_portions('HDEL', P .. 'leases:' .. session, claims)
    if not hsets[session] and call('EXISTS', P .. 'leases:' .. session) == 0 then
      call('ZREM', P .. 'lessees', session)
    end
  end
  for session, claims in pairs(hsets) do
    in_portions('HSET', P .. 'leases:' .. session, claims)
    call('ZADD', P .. 'lessees', 0, session)
  end
end

-- Adds resumed queues to the queues with ready jobs, and removes paused ones.
local function write_queues()
  for _, name in ipairs(queues_resumed) do
    local ready = tonumber(call('HGET', P .. 'counts', F.ready_status .. name) or 0)
    if call('EXISTS', P .. 'q:' .. name) == 1 then
      call('ZREM', P .. 'ready', name)
    elseif ready > 0 then
      call('ZADD', P .. 'ready', 0, name)
      record_readied(name, ready)
    end
  end
end

-- Returns the status and the queue in which a job that cannot be read is counted, as far as its bytes show them.
local function counted_as(stored)
  local first = byte(stored) or 0
  local is_read, read = pcall(decode_waiting, stored, 1)
  is_read = is_read and (first >= 64 or first < F.running_status)
  return first % 64 < F.buried_status and is_read and first % 64, is_read and read[F.queue]
end

-- Replaces a job that cannot be read, because another program has changed it, by a FAILED one whose state keeps the bytes. `status` and
-- `queue` are those in which the job is counted, if they are known.
local function set_aside(id, stored, status, queue)
  local record = touch(K.JOB, id, stored)
  if record.header then
    touched[#touched] = nil
    return
  end
  local its_status, its_queue = counted_as(stored)
  status, queue = status or its_status, queue or its_queue
  record.status, record.queue = queue and status or nil, queue or '?'
  record.rev, record.is_new = L.stand_in, not record.status
  local now, header = enc(wall), cmsgpack.unpack(L.defaults[1])
  header[F.status], header[F.flags], header[F.queue], header[F.job], header[F.created_at] = F.failed_status, G.STATED, record.queue, '?', now
  header[F.seq], header[F.due_at], header[F.ended_at], header[F.fade_at] = enc(call('HINCRBY', P .. 'meta', 'seq', 1)), now, now, enc(wall + R.keep_failed)
  header[F.cause], record.header, record.state = L.unknown, header, sub(stored, 1, 65536)
end

local function flush()
  for _, record in ipairs(touched) do
    write_record(record)
  end
  set_all(values)
  unlink_all(gone)
  for key, members in pairs(zrems) do -- before the additions, because a record may return to its place
    in_portions('ZREM', P .. key, members)
  end
  for key, members in pairs(zadds) do
    add_members(P .. key, members)
  end
  write_leases()
  for queue, of_queue in pairs(readied_now) do
    for priority, entries in pairs(of_queue) do
      push(priority .. ':' .. queue, entries)
      call('ZADD', P .. 'priorities:' .. queue, -priority, priority)
    end
  end
  write_counts()
  write_queues()
  touched, values, gone, zadds, zrems, hsets, hdels, readied_now, queues_resumed = {}, {}, {}, {}, {}, {}, {}, {}, {}
  for queue, jobs in pairs(readied) do
    nudge(queue, jobs)
  end
  publish_ends(ended_ids)
  readied, ended_ids = {}, {}
end
