-- === part base =============================================================================================

-- What every script begins with.
--
-- KEYS[1]  the shard's prefix, "{namespace:shard}:"; all keys begin with it, and so lie in one slot of a Cluster
-- ARGV[1]  "" for the server's own time, or "wall:steady" in microseconds, for tests
-- ARGV[2]  the verb's arguments, a msgpack array
--
-- Names of the form F.X, S.X, E.X, W.X, R.X stand for a job's fields, statuses, events, words and rules: they are
-- written into the text as plain values before the server sees it (scripts.py), so that each has one place, in Python.
--
-- A job is kept under j:ID, most in a fixed layout that is cut and put together as a string, all others as a msgpack array, in which a
-- field that is absent is false, and which ends after its last one: see fields.py for both, where L.X comes from too, first and last byte
-- of what the fixed layout has. Numbers of microseconds stay exact: Lua's doubles have 53 bits.

local call, byte, sub = redis.call, string.byte, string.sub
local P = KEYS[1]
local given = cmsgpack.unpack(ARGV[2])

local wall, steady
if ARGV[1] == '' then
  local time = call('TIME')
  wall = time[1] * 1000000 + time[2]
  steady = wall
else
  local colon = string.find(ARGV[1], ':', 1, true)
  wall = tonumber(string.sub(ARGV[1], 1, colon - 1))
  steady = tonumber(string.sub(ARGV[1], colon + 1))
end

-- How many values go to one command: Lua's unpack has room for 8,000.
local MOST = 2000

-- A command with as many values as there are, in portions of MOST.
local function in_portions(command, key, values)
  for first = 1, #values, MOST do
    call(command, key, unpack(values, first, math.min(first + MOST - 1, #values)))
  end
end

local function set_all(keys_and_values)
  for first = 1, #keys_and_values, MOST do
    call('MSET', unpack(keys_and_values, first, math.min(first + MOST - 1, #keys_and_values)))
  end
end

-- A record with more bytes than this is not unpacked, nor sent to a client.
local LARGEST = 67108864
