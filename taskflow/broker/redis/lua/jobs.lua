-- Jobs as they are read, changed and written once at the end.

local cache, changed, dropped = {}, {}, {}

-- --- reading and writing ------------------------------------------------------------------------------

-- The fields that are strings, where there are any; all others are numbers.
local STRINGS = {}
for _, field in ipairs({ F.payload, F.claim, F.worker, F.settled, F.result, F.extras, F.key, F.joins, F.behind, F.errors, F.progress,
  F.cancel_requested, F.reason, F.waiting_for }) do
  STRINGS[field] = true
end

-- So that no step that follows stumbles over a value of a kind that it does not know, and stops with it the claims of all.
local function is_job(job)
  if type(job) ~= 'table' then
    return false
  end
  for field = 1, #job do
    local value = job[field]
    if value and type(value) ~= (STRINGS[field] and 'string' or 'number') then
      return false
    end
  end
  local status = job[F.status]
  return status and job[F.queue] and job[F.name] and job[F.priority] and job[F.seq] and job[F.created]
    and (status ~= S.RUNNING or (job[F.epoch] and job[F.claim] and #job[F.claim] == 24 and job[F.claimed_steady]))
    and (status ~= S.SCHEDULED or job[F.due])
    and (status < S.SUCCEEDED or (job[F.ended] and (status == S.GONE or job[F.keep_until])))
end

-- Sets a field, without a hole before it: cmsgpack would take the array for a map.
local function set(job, field, value)
  for i = #job + 1, field - 1 do
    job[i] = false
  end
  job[field] = value
end

-- What is kept in the fixed layout (fields.py), which begins with the status: no msgpack array begins with so small a byte.
-- nil when it is cut off or goes on.
local function of_layout(stored)
  local status, at, worker = string.byte(stored), 1, nil
  if status >= S.RUNNING then
    worker, at = struct.unpack('>I2c0', stored, L.running)
  end
  local _, priority, queue, name, due, seq, created, extras, next_at = struct.unpack('>BbI4I4I8I6I8I2c0', stored, at)
  local job = { status, queue, name, priority, seq, created, due ~= created and due, false }
  if worker then
    job[F.epoch], job[F.claim] = struct.unpack('>I4c24', stored, L.epoch)
    job[F.claimed], job[F.claimed_steady] = struct.unpack('>I8I8', stored, L.claimed)
    job[F.worker] = worker
  end
  if status == S.SUCCEEDED then
    local ended, ran_for, keep_for
    ended, ran_for, keep_for, next_at = struct.unpack('>I8I8I8', stored, next_at)
    job[F.claim], job[F.settled], job[F.started] = false, string.sub(stored, L.fence), ended - ran_for
    job[F.result], next_at = struct.unpack('>I4c0', stored, next_at)
    job[F.ended], job[F.keep_until] = ended, ended + keep_for
  else
    job[F.payload], next_at = struct.unpack('>I4c0', stored, next_at)
  end
  if extras ~= '' then
    set(job, F.extras, extras)
  end
  return next_at == #stored + 1 and job or nil
end

local function unpacked(stored)
  local first = string.byte(stored)
  if first and first >= S.SCHEDULED and first <= S.SUCCEEDED then
    return of_layout(stored)
  end
  return cmsgpack.unpack(stored)
end

-- What does not read as a job is put aside, once, and is not there any more: one bad value stops nobody.
local function parse(id, stored)
  if not stored then
    return false
  end
  local is_whole, job = pcall(unpacked, stored)
  if is_whole and is_job(job) then
    return job
  end
  call('HSET', P .. 'bad', id, stored)
  call('DEL', P .. 'j:' .. id)
  return false
end

-- Whether there is nothing to it but what the fixed layout has for one that waits for its first run.
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
  return struct.pack('>BbI4I4I8I6I8I2', job[F.status], job[F.priority], job[F.queue], job[F.name], job[F.due] or job[F.created],
    job[F.seq], job[F.created], #extras) .. extras .. struct.pack('>I4', #payload) .. payload
end

-- Bytes of a payload that is kept apart, under b:ID, of which there is a reference in its place (fields.py); nil of any other.
local function size_apart(payload)
  if payload and #payload == 6 and string.sub(payload, 1, 2) == L.mark then
    return struct.unpack('>I4', payload, 3)
  end
end

local function drop_bodies(ids)
  for first = 1, #ids, MOST do
    local keys = {}
    for i = first, math.min(first + MOST - 1, #ids) do
      keys[#keys + 1] = P .. 'b:' .. ids[i]
    end
    call('UNLINK', unpack(keys))
  end
end

-- What is kept apart goes when the job has been written: a step between the two may fail, and it would have to run again.
local function drop_payload(id, job)
  if size_apart(job[F.payload]) then
    dropped[#dropped + 1] = id
  end
  job[F.payload] = false
end

-- MGET, since it passes over a key of a wrong type.
local function prefetch(ids)
  local keys, asked = {}, {}
  for _, id in ipairs(ids) do
    if cache[id] == nil then
      cache[id] = false
      asked[#asked + 1] = id
      keys[#keys + 1] = P .. 'j:' .. id
    end
  end
  for first = 1, #keys, MOST do
    local last = math.min(first + MOST - 1, #keys)
    for i, stored in ipairs(call('MGET', unpack(keys, first, last))) do
      cache[asked[first + i - 1]] = parse(asked[first + i - 1], stored)
    end
  end
end

-- The job, or false.
local function load(id)
  if cache[id] == nil then
    prefetch({ id })
  end
  return cache[id]
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
  drop_bodies(dropped)
  changed, dropped = {}, {}
end

local function is_waiting(job)
  return job[F.status] <= S.READY
end

local function has_ended(job)
  return job[F.status] >= S.SUCCEEDED and job[F.status] <= S.CANCELLED
end

local function is_kept(job)
  return job[F.status] ~= S.GONE and not (has_ended(job) and job[F.keep_until] <= wall)
end

local function due_of(job)
  return job[F.due] or job[F.created]
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
