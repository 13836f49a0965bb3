-- Which of these commands this user may not run. Argument: their names. The reply: those that are not permitted.
--
-- Each is asked about with our own keys and channels, with as few of them as make it a command.

local ours = { P .. 'nudges', P .. 'ended', P .. 'nudges' }

local function is_permitted(command)
  for number = 0, #ours do
    local is_command, is_allowed = pcall(redis.acl_check_cmd, command, unpack(ours, 1, number))
    if is_command then
      return is_allowed
    end
  end
  return true
end

local denied = {}
for _, command in ipairs(given[1]) do
  if not is_permitted(command) then
    denied[#denied + 1] = command
  end
end
return denied
