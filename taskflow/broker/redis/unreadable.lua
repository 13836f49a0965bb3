-- === part unreadable =======================================================================================
-- Sets unreadable records aside (see jobs.lua): the bytes move to bad:j:ID, and a failed job takes their place.

local function is_queue(number)
  local text = number > 0 and call('HGET', P .. 'texts', number)
  return is_text(text) and string.sub(text, 1, 2) == 'q:'
end

-- Names an unknown queue or job "?".
local function give_names(job)
  local numbers = intern({ 'q:?', 'j:?' })
  if not is_queue(job[F.queue]) then
    job[F.queue] = numbers[1]
  end
  if job[F.name] == 0 then
    job[F.name] = numbers[2]
  end
end

-- Replaces a record, without changing counts and indexes.
local function replace_record(id, job)
  give_names(job)
  call('RENAME', P .. 'j:' .. id, P .. 'bad:j:' .. id)
  call('HDEL', P .. 'spoilt', id)
  stand_ins[id] = nil
  save(id, job)
end

-- Returns the job that replaces the record, or false if the record can be read.
local function set_aside(id, note)
  local job = load(id)
  if job and not stand_ins[id] and note[1] == F.queue and job[F.status] == note[3] then
    job = stand_in(id, note, tostring(job[F.queue]), job) -- the list of another queue holds it
  end
  note = stand_ins[id]
  if not note then
    call('HDEL', P .. 'spoilt', id)
    return false
  end
  if note[3] and is_queue(note[4]) and not (note[3] == S.FAILED and note[1] == F.cause) then
    count(note[4], note[3], -1)
  else
    recount()
  end
  local key, joins = job[F.key], job[F.joins]
  replace_record(id, job)
  call('ZREM', P .. 'expiring', id)
  call('ZREM', P .. 'held', id)
  count(job[F.queue], S.FAILED, 1)
  tally(job[F.queue], E.FAIL)
  add_scored(fading, job[F.fade_at], id)
  join_group(id, job)
  add_to(kept, job[F.queue], 1, kept_member(id, job))
  if key then
    release_key(id, job)
  end
  release_joined(job)
  ended_ids[#ended_ids + 1] = id
  return job
end

-- Sets aside the unreadable records that this call has found.
local function set_all_aside()
  local found = {}
  for id, note in pairs(stand_ins) do
    found[id] = note
  end
  for id, note in pairs(found) do
    set_aside(id, note)
  end
end
