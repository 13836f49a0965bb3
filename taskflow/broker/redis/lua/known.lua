-- Whether ids are known, ended or not. Arguments: ids. The reply: how many of them.

prefetch(given[1])
local known = 0
for _, id in ipairs(given[1]) do
  known = known + (load(id) and 1 or 0)
end
return known
