-- === script permitted ======================================================================================
-- Finds the calls that the ACL of this user forbids. Argument: a list of calls, each the name of a command and its arguments, with keys
-- and channels under our prefix. Reply: the names of the commands that are forbidden.
--
-- Each call must have all its arguments. For a call without them, a server before Redis 8 looks for keys where there are none and
-- crashes. A command that the server does not know counts as permitted.

local denied = {}
for _, command in ipairs(given[1]) do
  local is_command, is_allowed = pcall(redis.acl_check_cmd, unpack(command))
  if is_command and not is_allowed then
    denied[#denied + 1] = command[1]
  end
end
return denied

-- === script layout =========================================================================================
-- Returns the layout of the stored keys, or nil if nothing is stored yet. Arguments: our layout, and whether a store without one gets it.

if given[2] then
  call('HSETNX', P .. 'meta', 'layout', given[1])
end
local stored = call('HGET', P .. 'meta', 'layout')
if not stored and not given[2] then
  return false
end
local layout = tonumber(stored)
if not layout or layout % 1 ~= 0 then -- not a layout number
  call('HSET', P .. 'meta', 'layout', given[1])
  return given[1]
end
return layout
