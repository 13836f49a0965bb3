-- Applies steps. `apply` works even if the server's memory is full, but `grow` is then refused: see the flags in scripts.py.

-- === part apply_steps ======================================================================================
-- arguments  revision; kinds and ids of all records, alternating; contents that were sent ahead; how many `seq` new records need at most;
--            steps; a query or false. Steps name a record by its number among all records
-- a step     records and their expected revisions, alternating; puts; records to drop; additions: record, amount, and bound or false, in
--            turn; counts: names and numbers, alternating; topics: ids of sessions, or 'due'
-- a put      of a job that is READY at once, in the fixed layout: record; flags, priority, queue, and the end of its bytes, from the lengths
--            on.
--            Of another new record without indexes: record; its bytes after the revision. Of any other: record; its header, or fields and
--            values, alternating, if it exists; stamps: fields and microseconds from now, alternating, or false for the next `seq`; `sent`,
--            `state`, content: true if unchanged; entries or false; whether it is new; the request or false
-- reply      answers, and the reply to the query. An answer is 'o'; 's', or 'r' if the same call made the record; or records past a bound

local function is_stale(expect, stored, rev)
  local stale, is_ours = false, true
  for k = 1, #expect, 2 do
    local its = stored[expect[k]]
    its = its and sub(its, 2, 9) or ''
    if its ~= expect[k + 1] then
      stale, is_ours = true, is_ours and expect[k + 1] == '' and its == rev
    end
  end
  return stale and (is_ours and 'r' or 's') or false
end

local function apply_steps(rev, refs, numbers, steps)
  local keys, records, stored, answers, seq = {}, {}, nil, {}, nil
  for i = 1, #refs, 2 do
    keys[(i + 1) / 2] = P .. PREFIXES[refs[i] + 1] .. refs[i + 1]
  end
  stored = get_all(keys)
  local function get(i)
    local record = records[i]
    if not record then
      record = touch(refs[2 * i - 1], refs[2 * i], stored[i])
      records[i] = record
    end
    return record
  end
  local function next_seq()
    seq = (seq or call('HINCRBY', P .. 'meta', 'seq', numbers) - numbers) + 1
    return enc(seq)
  end

  -- Returns the numbers of the records that the additions would push past a bound.
  local function past(adds)
    local sums, found = {}, {}
    for k = 1, #adds, 3 do
      local header = stored[adds[k]] and get(adds[k]).header or records[adds[k]] and records[adds[k]].header
      if header then
        sums[adds[k]] = (sums[adds[k]] or dec(header[F.awaits])) + adds[k + 1]
        if adds[k + 2] and sums[adds[k]] > adds[k + 2] then
          found[#found + 1] = adds[k]
        end
      end
    end
    return #found > 0 and found
  end

  local now = enc(wall)
  local function add_job(i, flags, priority, queue, tail)
    local position = now .. next_seq()
    values[#values + 1] = keys[i]
    values[#values + 1] = char(F.ready_status) .. rev .. struct.pack('>I2B', flags, priority + 128) .. position .. now .. tail
    record_ready(queue, priority, position .. refs[2 * i])
    count(queue, F.ready_status, 1)
    record_readied(queue, 1)
    local key = apart(refs[2 * i], sub(tail, -L.reference))
    if key then
      call('PERSIST', P .. 'c:' .. key)
    end
  end

  local function put(i, header, stamps, sent, state, content, entries, is_new, request)
    local record = get(i)
    record.rev, record.is_new, record.request = rev, is_new, request
    if is_new then
      record.header = header
    else
      local fields = header
      header = record.header
      if not header then -- it could not be read
        header = cmsgpack.unpack(L.defaults[record.kind + 1])
        record.header = header
      end
      for k = 1, #fields, 2 do
        header[fields[k]] = fields[k + 1]
      end
    end
    for k = 1, #stamps, 2 do
      header[stamps[k]] = stamps[k + 1] and enc(wall + stamps[k + 1]) or next_seq()
    end
    if sent ~= true then
      record.sent = sent or nil
    end
    if state ~= true then
      record.state = state or nil
    end
    if content ~= true then
      record.content = held(record.id, rev, content or nil)
      local key = apart(record.id, record.content)
      if key then
        call('PERSIST', P .. 'c:' .. key)
      end
    end
    if entries then
      header[#header] = entries
    end
  end

  for s, step in ipairs(steps) do
    answers[s] = is_stale(step[1], stored, rev)
  end
  local wakes = {}
  for s, step in ipairs(steps) do
    local _, puts, drops, adds, totals, topics = unpack(step)
    answers[s] = answers[s] or #adds > 0 and past(adds) or 'o'
    if answers[s] == 'o' then
      for _, each in ipairs(puts) do
        if #each == 2 then
          values[#values + 1] = keys[each[1]]
          values[#values + 1] = '\064' .. rev .. each[2]
        elseif #each == 5 then
          add_job(unpack(each))
        else
          put(unpack(each, 1, 9))
        end
      end
      for _, i in ipairs(drops) do
        if refs[2 * i - 1] == K.KEY then -- it is in no index
          gone[#gone + 1] = keys[i]
        else
          local record = get(i)
          record.header, record.is_unread = nil, nil
        end
      end
      for k = 1, #adds, 3 do
        local record = (stored[adds[k]] or records[adds[k]]) and get(adds[k])
        local header = record and record.header
        if header then
          header[F.awaits] = enc(dec(header[F.awaits]) + adds[k + 1])
        end
      end
      for k = 1, #totals, 2 do
        events[totals[k]] = (events[totals[k]] or 0) + totals[k + 1]
      end
      for _, topic in ipairs(topics) do
        wakes[topic] = true
      end
    end
  end
  flush()
  for topic in pairs(wakes) do
    if topic == 'due' then
      nudge_from(P .. 'upkeepers', topic, R.max_nudged_when_due)
    else
      local request = call('MGET', P .. 'r:' .. topic)[1]
      if request and #request > 8 then
        call('PUBLISH', P .. 'n:' .. sub(request, 9), 'session:' .. string.gsub(topic, '.', function(letter)
          return string.format('%02x', byte(letter))
        end))
      end
    end
  end
  return answers
end

-- === part run_apply =======================================================================================
local rev, refs, ahead, numbers, steps, query = unpack(given)
if has_missing(ahead) then
  return redis.status_reply('MISSING')
end
local answers = apply_steps(rev, refs, numbers, steps)
return { answers, query and run_query(query) }
