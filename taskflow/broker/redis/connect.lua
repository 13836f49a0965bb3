-- === script permitted ======================================================================================

-- Which of these calls this user may not make. Argument: each as the command's name and its arguments, our own keys and channels. The reply: the
-- names of those that are not permitted.
--
-- They must be whole: asked about a command without the arguments that it needs, a server before Redis 8 looks for its keys where there are
-- none, and crashes. What the server has no such command for is permitted.

local denied = {}
for _, asked in ipairs(given[1]) do
  local is_command, is_allowed = pcall(redis.acl_check_cmd, unpack(asked))
  if is_command and not is_allowed then
    denied[#denied + 1] = asked[1]
  end
end
return denied

-- === script layout =========================================================================================

-- Which layout the keys are in. Arguments: ours, which a store without one has from now on. The reply: its own.

call('HSETNX', P .. 'meta', 'layout', given[1])
local layout = tonumber(call('HGET', P .. 'meta', 'layout'))
if not layout or layout % 1 ~= 0 then -- no version of ours wrote that
  call('HSET', P .. 'meta', 'layout', given[1])
  return given[1]
end
return layout
