-- Stored jobs. A script reads each once, changes it in memory, and writes all changed jobs at its end.

-- === part read_jobs ========================================================================================
local cache, changed = {}, {}

-- --- reading and writing ------------------------------------------------------------------------------

-- Fields that hold strings. All others hold numbers.
local STRINGS = { F.strings }

-- Numbers are whole, from 0 to these limits, for which keys, the fixed layout and Lua's numbers have room.
local MOST_OF = { [F.status] = S.BURIED, [F.queue] = 4294967295, [F.name] = 4294967295, [F.priority] = 127, [F.seq] = 281474976710655,
  [F.epoch] = 4294967294 }
local MOST_ELSEWHERE = 2 ^ 62

-- Returns the first field with a value that no script writes, or nil. All later steps can trust the other fields.
local function spoilt_field(job)
  for field = 1, #job do
    local value = job[field]
    if value == nil or field > F.last then
      return field
    elseif not value then
      -- absent
    elseif STRINGS[field] then
      if type(value) ~= 'string' then
        return field
      end
    elseif type(value) ~= 'number' or value % 1 ~= 0 or value > (MOST_OF[field] or MOST_ELSEWHERE)
      or value < (field == F.priority and -128 or 0) then
      return field
    end
  end
  for field = F.status, F.created_at do
    if not job[field] then
      return field
    end
  end
  local status = job[F.status]
  if job[F.claim] and status ~= S.RUNNING then
    return F.claim
  elseif status == S.RUNNING then
    return not job[F.epoch] and F.epoch or (not job[F.claim] or #job[F.claim] ~= 24) and F.claim
      or not job[F.claimed_steady] and F.claimed_steady or nil
  elseif status == S.SCHEDULED then
    return not job[F.due_at] and F.due_at or nil
  elseif status == S.HELD then
    return (job[F.awaits] or 0) == 0 and F.awaits or nil
  elseif status >= S.SUCCEEDED then
    return not job[F.ended_at] and F.ended_at or status ~= S.BURIED and not job[F.fade_at] and F.fade_at or nil
  end
end

-- Sets a field, and fills the gap before it: cmsgpack would pack an array with a gap as a map.
local function set(job, field, value)
  for i = #job + 1, field - 1 do
    job[i] = false
  end
  job[field] = value
end

-- Decodes the fixed layout (fields.py). It begins with the status, a smaller byte than any msgpack array begins with.
-- Returns nil if the record is too short or too long.
local function decode_layout(stored)
  local status, at, worker = string.byte(stored), 1, nil
  if status >= S.RUNNING then
    worker, at = struct.unpack('>I2c0', stored, L.running)
  end
  local _, priority, queue, name, due, seq, created, extras, next_at = struct.unpack('>BbI4I4I8I6I8I2c0', stored, at)
  local job = { status, queue, name, priority, seq, created, due ~= created and due, false }
  if worker then
    job[F.epoch], job[F.claim] = struct.unpack('>I4c24', stored, L.epoch)
    job[F.claimed_at], job[F.claimed_steady] = struct.unpack('>I8I8', stored, L.claimed)
    job[F.worker] = worker
  end
  if status == S.SUCCEEDED then
    local ended, ran_for, keep_for
    ended, ran_for, keep_for, next_at = struct.unpack('>I8I8I8', stored, next_at)
    job[F.claim], job[F.settled], job[F.started_at] = false, string.sub(stored, L.fence), ended - ran_for
    job[F.result], next_at = struct.unpack('>I4c0', stored, next_at)
    job[F.ended_at], job[F.fade_at] = ended, ended + keep_for
  else
    job[F.payload], next_at = struct.unpack('>I4c0', stored, next_at)
  end
  if extras ~= '' then
    set(job, F.extras, extras)
  end
  return next_at == #stored + 1 and job or nil
end

-- Decodes a record, or raises. The first bytes of an array hold its length: the length operator of Lua is undefined with gaps.
local function unpacked(stored)
  local first = string.byte(stored)
  if first and first >= S.SCHEDULED and first <= S.SUCCEEDED then
    return decode_layout(stored) or error('it is too short or too long')
  end
  local job, more = cmsgpack.unpack(stored)
  local fields = first - 144
  if first == 220 then
    fields = struct.unpack('>I2', stored, 2)
  end
  if type(job) ~= 'table' or more ~= nil or #job ~= fields then
    error('it is not an array of fields')
  end
  return job
end

-- spoilt: id -> a note about an unreadable job, which upkeep sets aside (unreadable.lua). The note has the number of the field (0: the
-- whole record), the problem, and the status and queue under which the job is counted, false if unknown.
local function report_spoilt(id, note)
  call('HSET', P .. 'spoilt', id, cmsgpack.pack(note))
end

local function problem_of(reason)
  return string.sub(string.gsub(tostring(reason), '^user_script:%d+: ', ''), 1, 200)
end

-- The notes of this call by id.
local stand_ins = {}

local function is_number_for(field, value)
  return type(value) == 'number' and value % 1 == 0 and value >= 0 and value <= (MOST_OF[field] or MOST_ELSEWHERE)
end

-- Returns a failed job in place of an unreadable one. It keeps the fields of `job` that can be read.
local function stand_in(id, note, raw, job)
  local one = {}
  for _, field in ipairs({ F.status, F.queue, F.name, F.priority, F.seq, F.created_at }) do
    one[field] = job and is_number_for(field, job[field]) and job[field] or 0
  end
  if job and is_number_for(F.status, job[F.status]) and job[F.status] < S.BURIED and one[F.queue] > 0 then
    note[3], note[4] = note[3] or one[F.status], note[4] or one[F.queue]
  end
  one[F.status], one[F.queue] = S.FAILED, note[4] or one[F.queue]
  set(one, F.ended_at, wall)
  set(one, F.fade_at, wall + R.keep_failed)
  for _, field in ipairs({ F.extras, F.key, F.joins, F.cause }) do
    if job and type(job[field]) == 'string' and (field == F.extras or field == F.cause or #job[field] % 16 == 0) then
      set(one, field, job[field])
    end
  end
  local what = string.format(W.UNREADABLE_FIELDS, (({ F.names })[note[1]] or 'record') .. ': ' .. note[2])
  set(one, F.errors, cmsgpack.pack({ W.UNREADABLE, what, '', 1, W.ENDING_FAILED, '', 0, wall }))
  set(one, F.reason, W.UNREADABLE .. ': ' .. what)
  set(one, F.spoilt, cmsgpack.pack({ note[1], note[2], string.sub(raw or '', 1, 256) }))
  stand_ins[id] = note
  report_spoilt(id, note)
  return one
end

-- Returns the stored job, a stand-in if it cannot be read, or false if there is none. One bad record stops no other.
local function parse(id, stored)
  if not stored then
    return false
  elseif #stored > LARGEST then
    return stand_in(id, { 0, #stored .. ' bytes are more than a job can have', false, false }, stored)
  end
  local is_read, job = pcall(unpacked, stored)
  if not is_read then
    return stand_in(id, { 0, problem_of(job), false, false }, stored)
  end
  local field = spoilt_field(job)
  if field then
    return stand_in(id, { field, 'its value is of a wrong type, or out of bounds', false, false }, stored, job)
  end
  return job
end

-- Makes the next upkeep reindex (reindex.lua), because counts or indexes disagree with the jobs.
local function recount()
  call('HDEL', P .. 'counts', 'whole')
end

-- Looks for keys of a wrong type, which MGET reports as missing.
local function look_for(ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. 'j:' .. id
  end
  if call('EXISTS', unpack(keys)) > 0 then
    for i, id in ipairs(ids) do
      local kind = call('TYPE', keys[i]).ok
      if kind ~= 'none' then
        cache[id] = stand_in(id, { 0, 'its key is a ' .. kind, false, false })
      end
    end
  end
end

local function prefetch(ids)
  local keys, wanted = {}, {}
  for _, id in ipairs(ids) do
    if cache[id] == nil then
      cache[id] = false
      wanted[#wanted + 1] = id
      keys[#keys + 1] = P .. 'j:' .. id
    end
  end
  for first = 1, #keys, MOST do
    local last, missing = math.min(first + MOST - 1, #keys), {}
    for i, stored in ipairs(call('MGET', unpack(keys, first, last))) do
      local id = wanted[first + i - 1]
      cache[id] = parse(id, stored)
      missing[#missing + 1] = not stored and id or nil
    end
    if #missing > 0 then
      look_for(missing)
    end
  end
end

-- Returns the job, or false.
local function load(id)
  if cache[id] == nil then
    prefetch({ id })
  end
  return cache[id]
end

local function is_waiting(job)
  return job[F.status] <= S.READY
end

local function has_ended(job)
  return job[F.status] >= S.SUCCEEDED and job[F.status] <= S.CANCELLED
end

local function is_kept(job)
  return job[F.status] ~= S.BURIED and not (has_ended(job) and job[F.fade_at] <= wall)
end

local function due_of(job)
  return job[F.due_at] or job[F.created_at]
end

-- === part write_jobs =======================================================================================
-- Returns whether the fixed layout can hold the job: it waits for its first run, and has no other fields.
local function is_plain(job)
  if #job ~= F.payload and #job ~= F.extras or job[F.status] ~= S.READY and job[F.status] ~= S.SCHEDULED or not job[F.payload] then
    return false
  end
  for field = F.payload + 1, F.extras - 1 do
    if job[field] then
      return false
    end
  end
  return #(job[F.extras] or '') < 65536
end

local function packed(job)
  if not is_plain(job) then
    return cmsgpack.pack(job)
  end
  local extras, payload = job[F.extras] or '', job[F.payload]
  return struct.pack('>BbI4I4I8I6I8I2', job[F.status], job[F.priority], job[F.queue], job[F.name], job[F.due_at] or job[F.created_at],
    job[F.seq], job[F.created_at], #extras) .. extras .. struct.pack('>I4', #payload) .. payload
end

-- Ids whose payloads and results, stored apart, are to be deleted. That happens only after the job is written: if a step in between fails,
-- the job must run again.
local payloads_dropped, results_dropped = {}, {}

local function drop_payload(id, job)
  if size_apart(job[F.payload]) then
    payloads_dropped[#payloads_dropped + 1] = id
  end
  job[F.payload] = false
end

local function save(id, job)
  cache[id] = job
  changed[id] = job
end

local function write_jobs()
  local values = {}
  for id, job in pairs(changed) do
    values[#values + 1] = P .. 'j:' .. id
    values[#values + 1] = packed(job)
  end
  set_all(values)
  unlink_all('b:', payloads_dropped)
  unlink_all('o:', results_dropped)
  changed, payloads_dropped, results_dropped = {}, {}, {}
end

-- "01890a5d-ac96-774b-bcce-b302099a8057"
local function id_text(id)
  local hex = string.gsub(id, '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
  return table.concat({
    string.sub(hex, 1, 8), string.sub(hex, 9, 12), string.sub(hex, 13, 16), string.sub(hex, 17, 20), string.sub(hex, 21),
  }, '-')
end
