-- Those of the jobs that a filter admits (choose.lua), up to a limit, as read.lua tells them. Arguments: ids, filter, limit.

local reply, numbers = { '' }, {}
for _, id in ipairs(chosen(given[1], given[2])) do
  if #reply < 2 * given[3] then
    local job = load(id)
    reply[#reply + 1] = id
    reply[#reply + 1] = cmsgpack.pack(job)
    numbers[job[F.queue]], numbers[job[F.name]] = true, true
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers) })
return reply
