-- After a purge: where there are many names, forgets those that no job has any more, and with those of queues their totals. Which names of
-- jobs these are it finds out only where few jobs are left, since it looks at each.

local MANY_NAMES, MOST_JOBS = 1000, 10000
if call('HLEN', P .. 'names') <= MANY_NAMES then
  return
end

local stored, jobs, is_used = call('HGETALL', P .. 'counts'), 0, {}
for i = 1, #stored, 2 do
  local queue, number = tonumber(string.match(stored[i], '^(%d+):%d$')), tonumber(stored[i + 1])
  if queue and number > 0 then
    is_used[queue] = true
    jobs = jobs + number
  end
end

local ids = {}
local function see_all(members, from)
  for _, member in ipairs(members) do
    ids[#ids + 1] = string.sub(member, from)
  end
end

local function see_queue(queue)
  for _, priority in ipairs(call('ZRANGE', P .. 'p:' .. queue, 0, -1)) do
    local list, returned = ready_keys(queue .. ':' .. priority)
    see_all(call('LRANGE', list, 0, -1), 15)
    see_all(call('ZRANGE', returned, 0, -1), 15)
  end
  see_all(call('ZRANGE', kept_key(queue, 0), 0, -1), 7)
  see_all(call('ZRANGE', kept_key(queue, 1), 0, -1), 7)
end

-- All there are, by the indexes.
local function see_jobs()
  for queue in pairs(is_used) do
    see_queue(queue)
  end
  see_all(call('ZRANGE', P .. 'due', 0, -1), 11)
  see_all(call('SMEMBERS', P .. 'held'), 1)
  for _, set in ipairs({ 'alive', 'dead' }) do
    for _, session in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      see_all(call('HVALS', P .. 'l:' .. session), 1)
    end
  end
  prefetch(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job then
      is_used[job[F.name]] = true
    end
  end
end

local function forget_fields(hash, is_kept)
  local stored = call('HGETALL', P .. hash)
  for i = 1, #stored, 2 do
    local queue = tonumber(string.match(stored[i], '^(%d+):'))
    if queue and not is_kept[queue] then
      call('HDEL', P .. hash, stored[i])
    end
  end
end

local sees_jobs = jobs <= MOST_JOBS and call('EXISTS', P .. 'spoilt') == 0
if sees_jobs then
  see_jobs()
end
local names, is_kept = call('HGETALL', P .. 'names'), {}
for i = 1, #names, 2 do
  local number = tonumber(names[i + 1])
  if number and (is_used[number] or not sees_jobs and string.sub(names[i], 1, 2) == 'j:') then
    is_kept[number] = true
  elseif number then
    call('HDEL', P .. 'names', names[i])
    call('HDEL', P .. 'texts', number)
  end
end
forget_fields('counts', is_kept)
forget_fields('totals', is_kept)
