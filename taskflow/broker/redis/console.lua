-- What stands in each queue. The reply: msgpack, for each queue in order: name, whether it is paused, counts by status,
-- the due time of the ready job that has waited longest, the next due time; and at last the server's time.

local names, about = {}, {}
local stored = call('HGETALL', P .. 'names')
for i = 1, #stored, 2 do
  if string.sub(stored[i], 1, 2) == 'q:' then
    local name = string.sub(stored[i], 3)
    names[#names + 1] = name
    about[name] = tonumber(stored[i + 1])
  end
end
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do
  if not about[name] then
    names[#names + 1] = name
    about[name] = false
  end
end

local function counts_of(queue)
  local fields = {}
  for code = S.HELD, S.CANCELLED do
    fields[#fields + 1] = (queue or '-') .. ':' .. code
  end
  local counts, is_known = call('HMGET', P .. 'counts', unpack(fields)), false
  for i = 1, #fields do
    is_known = is_known or counts[i] ~= false
    counts[i] = tonumber(counts[i]) or 0
  end
  return counts, is_known
end

-- Of what stands at the front of each priority, looked for among the first hundred entries.
local function oldest_ready(queue)
  local oldest = false
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    local entries = peek(list, returned, 100)
    for _, entry in ipairs(entries) do
      local job = load(id_in(entry))
      if job and job[F.status] == S.READY and due_of(job) == time_of(entry) then
        oldest = math.min(oldest or due_of(job), due_of(job))
        break
      end
    end
  end
  return oldest
end

-- The first due time of each queue, looked for among the first ten thousand that are scheduled.
local function next_due(wanted)
  local found = {}
  for page = 0, 9 do
    local members = call('ZRANGE', P .. 'due', page * 1000, page * 1000 + 999, 'WITHSCORES')
    for i = 1, #members, 2 do
      local _, queue = struct.unpack('>I6I4', members[i])
      if not found[queue] then
        found[queue] = tonumber(members[i + 1])
        wanted = wanted - 1
      end
    end
    if wanted <= 0 or #members < 2000 then
      break
    end
  end
  return found
end

local rows, with_scheduled = {}, 0
for _, name in ipairs(names) do
  local queue = about[name]
  local counts, is_known = counts_of(queue)
  local is_paused = call('SISMEMBER', P .. 'paused', name) == 1
  if is_known or is_paused then -- a call that was refused leaves a name, and no job
    local ready_since = counts[1 + S.READY] > 0 and oldest_ready(queue) or false
    with_scheduled = with_scheduled + (counts[1 + S.SCHEDULED] > 0 and 1 or 0)
    rows[#rows + 1] = { name, is_paused, counts, ready_since, queue }
  end
end
local due = next_due(with_scheduled)
for _, row in ipairs(rows) do
  row[5] = row[5] and due[row[5]] or false
end
return cmsgpack.pack({ rows, wall })
