-- Payloads that are kept apart (fields.py). They are sent ahead of the call, by commands of their own, and fade unless they are kept.

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
