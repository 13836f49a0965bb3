-- Adds one call. An item: id, queue, job (as numbers), priority, after, at, expires (microseconds or false), key, on_conflict,
-- payload, extras, awaits, joins.
-- The answer: "" for added, "r" and the id that gave way, "i" for an id that is known, "k" and the id that has the key.
local function add(item, seq)
  local id, key = item[1], item[8]
  if load(id) then
    return 'i'
  end
  local waiting, running
  if key then
    waiting, running = holders(key)
    local standing = waiting or running and not load(running)[F.cancel_requested] and running
    if standing and item[9] == 0 then
      return 'k' .. standing
    end
    if waiting then
      finish(waiting, load(waiting), E.REPLACE, S.CANCELLED, string.format(W.REPLACED_BY, id_text(id)))
    end
  end
  local due = wall + item[5]
  if item[6] then
    due = math.max(wall, item[6])
  end
  local job = { false, item[2], item[3], item[4], seq, wall, due > wall and due or false, item[10] }
  if item[11] then
    set(job, F.extras, item[11])
  end
  if item[7] then
    set(job, F.expires, wall + item[7])
  end
  local awaits = item[12]
  if running then
    awaits = awaits + 1
    set(job, F.behind, running)
    set(job, F.waiting_for, string.format(W.WAITS_BEHIND, id_text(running)))
  end
  if awaits > 0 then
    set(job, F.awaits, awaits)
  end
  if item[13] then
    set(job, F.joins, item[13])
  end
  if key then
    set(job, F.key, key)
    call('HSET', P .. 'k', key, (call('HGET', P .. 'k', key) or '') .. id)
  end
  enter(id, job, E.ENQUEUE)
  return waiting and 'r' .. waiting or ''
end

-- Adds all. Arguments: the texts of their queues and jobs, the items that name them by place. The answers, or nil
-- when every item was simply added.
local function add_all(texts, items)
  if #items == 0 then
    return nil
  end
  local numbers = intern(texts)
  local ids, answers, were_all_added = {}, {}, true
  for i, item in ipairs(items) do
    ids[i] = item[1]
  end
  prefetch(ids)
  local seq = call('HINCRBY', P .. 'meta', 'seq', #items) - #items
  if seq < 0 or seq > 281474976700000 then
    error('WRONGTYPE the number of arrivals has been lost')
  end
  for i, item in ipairs(items) do
    item[2], item[3] = numbers[item[2]], numbers[item[3]]
    answers[i] = add(item, seq + i)
    were_all_added = were_all_added and answers[i] == ''
  end
  return not were_all_added and answers or nil
end
