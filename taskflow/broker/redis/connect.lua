-- Which layout the keys are in. Arguments: ours, which a store without one has from now on. The reply: its own.

call('HSETNX', P .. 'meta', 'layout', given[1])
local layout = tonumber(call('HGET', P .. 'meta', 'layout'))
if not layout or layout % 1 ~= 0 then -- no version of ours wrote that
  call('HSET', P .. 'meta', 'layout', given[1])
  return given[1]
end
return layout
