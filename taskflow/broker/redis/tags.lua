-- The tags of jobs, and the index tag:TAG.

-- === part tags =============================================================================================
-- Returns the tags of a job as one text, and the two bytes that follow it in the extras; nil if the job has none. Extras may contain any
-- bytes. Their beginning is read by hand, because cmsgpack cannot decode all of msgpack. See job_schema.py.
local function packed_tags(job)
  local extras = job[F.extras]
  if not extras or sub(extras, 2, 3) ~= F.tagged then
    return nil
  end
  local kind, size, from = byte(extras, 4) or 0, 0, 5 -- a string whose head has 1 byte for a size up to 31, else 2 or 3
  if kind == 217 then
    size, from = byte(extras, 5) or 0, 6
  elseif kind == 218 then
    size, from = 256 * (byte(extras, 5) or 0) + (byte(extras, 6) or 0), 7
  else
    size = kind % 32
  end
  return sub(extras, from, from + size - 1), sub(extras, from + size, from + size + 1)
end

local function tags_of(job)
  local tags = {}
  for tag in string.gmatch(packed_tags(job) or '', '[^ ]+') do
    tags[#tags + 1] = tag
  end
  return tags
end

local function index_tags(id, job)
  for _, tag in ipairs(tags_of(job)) do
    call('ZADD', P .. 'tag:' .. tag, 0, id)
  end
end

local function leave_tags(id, job)
  for _, tag in ipairs(tags_of(job)) do
    call('ZREM', P .. 'tag:' .. tag, id)
  end
end
