-- Payloads and results stored apart from their jobs (fields.py). They are sent ahead of the call, and expire unless the call keeps them.

-- === part large_payloads ===================================================================================
-- Returns the size of a payload stored under b:ID, or a result under o:ID, to which the job has a reference (fields.py); nil for any other.
local function size_apart(payload)
  if payload and #payload == 6 and string.sub(payload, 1, 2) == L.mark then
    return struct.unpack('>I4', payload, 3)
  end
end

local function payload_keys(ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. 'b:' .. id
  end
  return keys
end

-- Returns whether a payload is missing.
local function has_missing(ids)
  local keys, found = payload_keys(ids), 0
  for first = 1, #keys, MOST do
    found = found + call('EXISTS', unpack(keys, first, math.min(first + MOST - 1, #keys)))
  end
  return found < #keys
end

local function keep_payloads(ids)
  for _, key in ipairs(payload_keys(ids)) do
    call('PERSIST', key)
  end
end

-- Deletes the keys of these ids: 'b:' payloads, 'o:' results, 'j:' jobs.
local function unlink_all(kind, ids)
  for first = 1, #ids, MOST do
    local keys = {}
    for i = first, math.min(first + MOST - 1, #ids) do
      keys[#keys + 1] = P .. kind .. ids[i]
    end
    call('UNLINK', unpack(keys))
  end
end
