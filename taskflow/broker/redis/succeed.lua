-- === script succeed ========================================================================================
-- Ends runs as SUCCEEDED.
--
-- arguments  revision; contents that were sent ahead; an array for each session and keep time: session, microseconds to keep the jobs, ids,
--            fences (36 bytes), outcomes (how long it ran in 8 bytes, and its result), keys, jobs that await them, notes. The last three
--            have '' for runs without one, and are false if no run has one
-- reply      a string with a byte for each run: "o" it took effect now or earlier, "s" a different fence, "t" ties; then the jobs among those
--            named that await nothing any more; or "MISSING"

local rev, ahead = given[1], given[2]
if #ahead > 0 and has_missing(ahead) then
  return redis.status_reply('MISSING')
end
local answers, values, gone, ended_ids, others = {}, {}, {}, {}, {}
local fence_of = {} -- of the jobs that this call has ended
local last_queue, last_begin
local last_flow, escaped_flow
local NO_PART = '\0\0\0\0'
local NOTE = '\064' .. rev .. '\0\0\0\010\145\168' -- the beginning of a note's record, whose header has one number of 8 bytes
local now, job_key = enc(wall), P .. 'j:'
local head, queues = char(F.succeeded_status) .. rev, {}
local awaited = {} -- the number of ends, by the job that awaits them
local notes_put, no_longer_live = {}, {} -- members of indexes

-- Returns the keys of the key records that name these jobs as holders, and no other job, by the jobs' numbers.
local function lone_keys(keys, ids)
  local found, names = {}, {}
  for i, key in ipairs(keys) do
    names[i] = P .. 'k:' .. key
  end
  for i, stored in ipairs(get_all(names)) do
    if stored and sub(stored, 10) == L.before_holder .. ids[i] .. L.behind_holder then
      found[i] = names[i]
    end
  end
  return found
end

-- Ends runs of one session with the same keep time.
local function end_group(session, keep_for, ids, fences, outcomes, keys_of, awaiting, notes)
  local keys, note_keys, claims, faded, members, ended = {}, {}, {}, {}, {}, 0
  local fades, key_of, known = enc(wall + keep_for), keys_of and lone_keys(keys_of, ids) or {}, {}
  for i, note in ipairs(notes or {}) do
    note_keys[i] = P .. 'o:' .. note
  end
  for i, stored in ipairs(get_all(note_keys)) do
    known[notes[i]] = stored and true -- a run without a note has the id '', which no record has
  end
  for i, id in ipairs(ids) do
    keys[i] = job_key .. id
  end
  for i, stored in ipairs(get_all(keys)) do
    local id, outcome, answer = ids[i], outcomes[i], 's'
    if fence_of[id] then
      answer = fence_of[id] == fences[i] and 'o' or 's'
      stored = false
    elseif stored and byte(stored) == F.running_status and #stored >= L.running then
      local waiting_at = L.running + struct.unpack('>I2', stored, L.running - 2)
      if sub(stored, L.fence) == fences[i] and #stored >= waiting_at + L.waiting - 1 then
        local flags, seq, queue, name, sent = struct.unpack('>I2xxxxxxxxxc8xxxxxxxxI2I2I4', stored, waiting_at + 9)
        local member = bit.band(flags, G.MEMBER)
        local ties, awaited_by, note = flags - member, awaiting and awaiting[i] or '', notes and notes[i] or ''
        if ties == 0 or ties == G.KEYED and key_of[i] or ties == G.AWAITED and awaited_by ~= '' and not known[note] then
          gone[#gone + 1] = key_of[i]
          local names_at = waiting_at + L.waiting
          local content_at = names_at + queue + name + (sent > 0 and sent - 1 or 0)
          if member > 0 then
            local place = sub(stored, names_at + queue + name, names_at + queue + name + L.member - 1)
            local flow = sub(place, 1, -5)
            if flow ~= last_flow then
              last_flow, escaped_flow = flow, sub(esc(flow), 1, -3) -- without the end mark
            end
            no_longer_live[#no_longer_live + 1] = escaped_flow .. esc(sub(place, -4)) .. id
            content_at = content_at + L.member
          end
          if ties == G.AWAITED then
            awaited[awaited_by] = (awaited[awaited_by] or 0) + 1
          end
          if ties == G.AWAITED and note ~= '' then
            values[#values + 1] = note_keys[i]
            values[#values + 1] = NOTE .. enc(#outcome - 7) .. NO_PART .. struct.pack('>I4', #outcome - 6) .. '\0' .. sub(outcome, 9) .. NO_PART
            notes_put[#notes_put + 1], known[note] = note, true
          end
          local queue_name = sub(stored, names_at, names_at + queue - 1)
          values[#values + 1] = keys[i]
          if #outcome > 65544 then -- a full server gets it within the call
            call('SET', P .. 'c:' .. id .. rev, sub(outcome, 9))
            outcome = sub(outcome, 1, 8) .. L.mark .. struct.pack('>I4', #outcome - 8) .. rev
          end
          values[#values + 1] = head .. sub(stored, 10, content_at - 1) .. now .. fades .. outcome
          if queue_name ~= last_queue then
            last_queue, last_begin = queue_name, struct.pack('>I2', 32768 + F.succeeded_status) .. esc(queue_name) .. now
          end
          queues[queue_name] = (queues[queue_name] or 0) + 1
          ended = ended + 1
          claims[ended], ended_ids[#ended_ids + 1] = sub(fences[i], 25), id
          faded[2 * ended - 1], faded[2 * ended] = '0', fades .. id
          members[2 * ended - 1], members[2 * ended] = '0', last_begin .. seq .. id
          if #stored == content_at + L.reference - 1 and sub(stored, content_at, content_at + 1) == L.mark then
            gone[#gone + 1] = P .. 'c:' .. id .. sub(stored, content_at + 6)
          end
          if #outcome == 8 + L.reference and sub(outcome, 9, 10) == L.mark then
            call('PERSIST', P .. 'c:' .. id .. sub(outcome, 15))
          end
          answer, fence_of[id] = 'o', fences[i]
        end
      end
    end
    answers[#answers + 1] = answer
    if answer == 's' and stored then
      others[#others + 1] = { #answers, id, stored, fences[i], outcome, fades, key_of[i] or false,
        awaiting and awaiting[i] or '', notes and notes[i] or '' }
    end
  end
  if ended > 0 then
    in_portions('HDEL', P .. 'leases:' .. session, claims)
    in_portions('ZADD', P .. 'i:fading', faded)
    in_portions('ZADD', P .. 'i:ended', members)
  end
end

for i = 3, #given do
  end_group(unpack(given[i]))
end
-- Subtracts ends from what a HELD job awaits. Returns whether it still awaits others, so that nothing else is to do.
local function await_fewer(id, number)
  local stored = get_all({ job_key .. id })[1]
  if not stored or byte(stored) ~= 64 + F.held_status or #stored < L.waiting
    or bit.band(struct.unpack('>I2', stored, 10), G.ADMITTED) ~= 0 then
    return false
  end
  local queue, name, sent = struct.unpack('>I2I2I4', stored, L.lengths)
  local at = L.waiting + queue + name + (sent > 0 and sent - 1 or 0) + 9
  local left = #stored > at + 8 and dec(sub(stored, at, at + 7)) - number or 0
  if left > 0 then
    values[#values + 1], values[#values + 2] = job_key .. id, sub(stored, 1, at - 1) .. enc(left) .. sub(stored, at + 8)
  end
  return left > 0
end

for id, number in pairs(awaited) do
  if await_fewer(id, number) then
    awaited[id] = nil
  end
end
set_all(values)
for queue, number in pairs(queues) do
  call('HINCRBY', P .. 'counts', F.running_status .. queue, -number)
  call('HINCRBY', P .. 'counts', F.succeeded_status .. queue, number)
  call('ZINCRBY', P .. 'kept:0', number, queue)
  call('HINCRBY', P .. 'totals', E.SUCCEED .. ':' .. queue, number)
end
add_members(P .. 'i:notes', notes_put)
in_portions('ZREM', P .. 'i:flow_live', no_longer_live)
unlink_all(gone) -- last: if a command fails, the jobs must run again
publish_ends(ended_ids)
local released = (#others > 0 or next(awaited)) and load_rest(rev)(others, answers, awaited) or {}
return { table.concat(answers), unpack(released) }

-- === part succeed_others ===================================================================================
-- Ends runs of jobs outside the fixed layout, and answers those with a different fence.

local function put_note(id, rev_of_note, result)
  local note = touch(K.NOTE, id, nil)
  note.header, note.state, note.rev, note.is_new = { enc(#result + 1) }, '\0' .. result, rev_of_note, true
end

local function succeed_any(id, stored, fence, outcome, fades, lone_key, awaited_by, note, awaited)
  local record = touch(K.JOB, id, stored)
  local header = record.header
  if not header then
    return 's'
  end
  local settled = '\0' .. sub(fence, 2) .. '\0'
  local epoch, ties = '\128' .. sub(fence, 2, 8), bit.band(header[F.flags], G.TIES)
  if header[F.status] ~= F.running_status or header[F.epoch] .. header[F.session] .. header[F.claim] ~= epoch .. sub(fence, 9) then
    if header[F.settled] == settled and awaited_by ~= '' then
      awaited[awaited_by] = awaited[awaited_by] or 0 -- a resent call returns the same released jobs again
    end
    return header[F.settled] == settled and 'o' or 's'
  elseif ties ~= (awaited_by ~= '' and G.AWAITED or 0) and (ties ~= G.KEYED or not lone_key)
    or note ~= '' and call('EXISTS', P .. 'o:' .. note) == 1 then
    return 't'
  end
  gone[#gone + 1] = lone_key or nil
  if awaited_by ~= '' then
    awaited[awaited_by] = (awaited[awaited_by] or 0) + 1
  end
  if note ~= '' then
    put_note(note, rev, sub(outcome, 9))
  end
  record.rev, record.content = rev, held(id, rev, sub(outcome, 9))
  header[F.status], header[F.session], header[F.claim] = F.succeeded_status, false, false
  header[F.settled], header[F.ended_at], header[F.fade_at] = settled, enc(wall), fades
  header[F.started_at] = enc(wall - dec(sub(outcome, 1, 8)))
  local key = apart(id, record.content)
  if key then
    call('PERSIST', P .. 'c:' .. key)
  end
  tally(header[F.queue], E.SUCCEED, 1)
  return 'o'
end

local function end_others(all, given_answers, awaited)
  local seen, released = {}, {}
  for _, each in ipairs(all) do
    local at, id, stored, fence = unpack(each, 1, 4)
    if seen[id] and seen[id] == fence then
      given_answers[at] = 'o'
    elseif not seen[id] then
      local touched_before = #touched
      given_answers[at] = succeed_any(id, stored, fence, each[5], each[6], each[7], each[8], each[9], awaited)
      if given_answers[at] == 'o' and touched[touched_before + 1].rev then
        seen[id] = fence
      else
        touched[#touched] = nil
      end
    end
  end
  for id, number in pairs(awaited) do
    local stored = call('MGET', P .. 'j:' .. id)[1]
    local header = stored and touch(K.JOB, id, stored).header
    if header then
      header[F.awaits] = enc(dec(header[F.awaits]) - number)
    end
    if not header or header[F.status] == F.buried_status or header[F.status] == F.held_status and dec(header[F.awaits]) <= 0 then
      released[#released + 1] = id
    end
  end
  flush()
  return released
end

return end_others
