-- Payloads that are kept apart (fields.py). They are sent ahead of the call, by commands of their own, and fade unless they are kept.

local function body_keys(ids)
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = P .. 'b:' .. id
  end
  return keys
end

-- Whether one of them is not there, at most MOST.
local function is_lacking(ids)
  return #ids > 0 and call('EXISTS', unpack(body_keys(ids))) < #ids
end

local function keep_bodies(ids)
  for _, key in ipairs(body_keys(ids)) do
    call('PERSIST', key)
  end
end
