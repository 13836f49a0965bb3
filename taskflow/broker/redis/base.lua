-- === part base =============================================================================================
-- The beginning of every script.
--
-- KEYS[1]  the prefix of every key, "{namespace:shard}:", which puts all keys into one slot of a Cluster
-- ARGV[1]  "" for the server's clock, or "wall:steady" in microseconds, for tests
-- ARGV[2]  the arguments of the script, a msgpack array
--
-- F.X, S.X, E.X, W.X and R.X stand for the fields of a job, statuses, events, words and rules. scripts.py replaces them by their values,
-- which Python defines.
--
-- A job is stored under j:ID. Most jobs have a fixed layout, which scripts cut and join as strings; L.X is the first and last byte of a
-- field in it. All other jobs are msgpack arrays: an absent field is false, and the array ends after its last field. See fields.py.
-- Microseconds stay exact, because Lua's doubles have 53 bits.

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

-- The most values for one command. The unpack of Lua has room for 8,000.
local MOST = 2000

-- Sends a command with any number of values, MOST at a time.
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

-- Bytes. A larger record is neither unpacked nor sent to a client.
local LARGEST = 67108864
