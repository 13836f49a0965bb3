-- Payloads that are kept apart (fields.py). They are sent ahead of the call, by commands of their own, and fade unless they are kept.

-- === part large_payloads ===================================================================================

-- Bytes of a payload that is kept apart, under b:ID, of which there is a reference in its place (fields.py); nil of any other.
local function size_apart(payload)
  if payload and #payload == 6 and string.sub(payload, 1, 2) == L.mark then
    return struct.unpack('>I4', payload, 3)
  end
end

local function body_keys(ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. 'b:' .. id
  end
  return keys
end

-- Whether one of them is not there.
local function is_lacking(ids)
  local keys, found = body_keys(ids), 0
  for first = 1, #keys, MOST do
    found = found + call('EXISTS', unpack(keys, first, math.min(first + MOST - 1, #keys)))
  end
  return found < #keys
end

local function keep_bodies(ids)
  for _, key in ipairs(body_keys(ids)) do
    call('PERSIST', key)
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
