-- === part base =============================================================================================
-- The beginning of every script.
--
-- KEYS[1]  the prefix of every key, "{namespace:shard}:", which puts all keys into one slot of a Cluster
-- ARGV[1]  "" for the server's clock, or "wall:steady" in microseconds, for tests
-- ARGV[2]  the arguments of the script, a msgpack array
--
-- scripts.py replaces some names by literals. F.X is the number of a field in a header, K.X a kind, G.X a flag. E.X is an event, R.X a rule,
-- W.X a word, and L.X is derived from the layout of records.
--
-- A number in a header is 8 bytes that sort like the number, so scripts mostly copy it. enc() and dec() convert it; they are exact up to
-- 2^53. In members of indexes, names and bytes of any length end with \0\1, and a \0 within them is followed by \255.
--
-- All keys, after the prefix. A claim is the number of a request (8 bytes) and of a lease (4 bytes).
--
-- key                    type    content
-- meta                   hash    layout; indexes: their names and digests; the last seq
-- j:ID, k:, s:, h:, q:,  string  records: jobs, keys, sessions, schedules, queues, ends, actions, inbox, marks, history, gates, turns. See
-- e:, a:, x:, m:, y:,            records.lua
-- g:, t:
-- c:ID, then 8 bytes     string  a large payload or result: see records.py
-- r:SESSION              string  the number of the session's last request (8 bytes), and its listener
-- i:INDEX                zset    the members of an index, all with score 0: position and id
-- list:PLACE             list    ready jobs in order: see ready_lists.lua. PLACE: priority, ":", queue
-- back:PLACE             zset    ready jobs that arrived out of order
-- priorities:QUEUE       zset    the priorities of ready jobs
-- ready                  zset    names of queues with ready jobs that are not paused
-- leases:SESSION         hash    its leases: claim -> ID
-- lessees                zset    ids of the sessions that may have leases
-- counts                 hash    the digit of a status and a queue -> the number of jobs
-- kept:0, kept:1         zset    queues by the number of their ended jobs; kept:1 counts the FAILED ones
-- totals                 hash    EVENT:QUEUE -> the number of events
-- waiting:, waiting:NAME zset    listeners that wait for jobs of any queue, or of the queue with this name, by their time; expires
-- upkeepers              zset    listeners that wait for the next due time
-- awaited                hash    ids of jobs whose end is awaited -> the listeners that await it
--
-- A listener is a text of 16 characters. Messages for it are published under n:LISTENER: a topic, or \0 and msgpack of ended jobs.

local call, byte, sub, char = redis.call, string.byte, string.sub, string.char
local P = KEYS[1]
local given = cmsgpack.unpack(ARGV[2])

local wall, steady
if ARGV[1] == '' then
  local time = call('TIME')
  wall = time[1] * 1000000 + time[2]
  steady = wall
else
  local colon = string.find(ARGV[1], ':', 1, true)
  wall = tonumber(sub(ARGV[1], 1, colon - 1))
  steady = tonumber(sub(ARGV[1], colon + 1))
end

-- Larger numbers would lose digits, so sums are capped here.
local MAX_EXACT = 2 ^ 53

local function enc(number)
  if number >= 0 then
    return '\128' .. struct.pack('>I7', number < MAX_EXACT and number or MAX_EXACT)
  end
  local packed = struct.pack('>i8', number)
  return char((byte(packed) + 128) % 256) .. sub(packed, 2)
end

local function dec(bytes)
  if byte(bytes) >= 128 then
    return (struct.unpack('>I7', bytes, 2))
  end
  return (struct.unpack('>i8', char(byte(bytes) + 128) .. sub(bytes, 2)))
end

-- The maximum size of a record in bytes. A larger one is neither decoded nor sent to a client. No client writes one.
local MAX_RECORD = 4194304

-- The maximum number of values in one command. Lua's unpack has room for 8,000.
local MAX_VALUES = 2000

-- Sends a command with any number of values, MAX_VALUES at a time.
local function in_portions(command, key, values)
  for first = 1, #values, MAX_VALUES do
    call(command, key, unpack(values, first, math.min(first + MAX_VALUES - 1, #values)))
  end
end

local function set_all(keys_and_values)
  for first = 1, #keys_and_values, MAX_VALUES do
    call('MSET', unpack(keys_and_values, first, math.min(first + MAX_VALUES - 1, #keys_and_values)))
  end
end

-- Adds members with score 0, so that their bytes order them.
local function add_members(key, members)
  local scored = {}
  for i, member in ipairs(members) do
    scored[2 * i - 1], scored[2 * i] = '0', member
  end
  in_portions('ZADD', key, scored)
end

local function get_all(keys)
  if #keys <= MAX_VALUES then
    return #keys > 0 and call('MGET', unpack(keys)) or {}
  end
  local values = {}
  for first = 1, #keys, MAX_VALUES do
    for i, value in ipairs(call('MGET', unpack(keys, first, math.min(first + MAX_VALUES - 1, #keys)))) do
      values[first + i - 1] = value
    end
  end
  return values
end

local function unlink_all(keys)
  for first = 1, #keys, MAX_VALUES do
    call('UNLINK', unpack(keys, first, math.min(first + MAX_VALUES - 1, #keys)))
  end
end

-- Encodes a text or bytes for a member of an index.
local function esc(text)
  if string.find(text, '\0', 1, true) then
    text = string.gsub(text, '%z', '\0\255')
  end
  return text .. '\0\1'
end

local function append_to(lists, name, value)
  local list = lists[name]
  if list then
    list[#list + 1] = value
  else
    lists[name] = { value }
  end
end

-- === part has_missing =======================================================================================
-- Returns whether content that was sent ahead is gone: see records.py.
local function has_missing(ahead)
  for first = 1, #ahead, MAX_VALUES do
    local keys = {}
    for i = first, math.min(first + MAX_VALUES - 1, #ahead) do
      keys[#keys + 1] = P .. 'c:' .. ahead[i]
    end
    if call('EXISTS', unpack(keys)) < #keys then
      return true
    end
  end
  return false
end

-- === script permitted ======================================================================================
-- Finds the calls that the ACL of this user forbids. Argument: a list of calls, each the name of a command and its arguments, with keys
-- and channels under our prefix. Reply: the names of the commands that are forbidden.
--
-- Each call must have all its arguments. If some are missing, a server before Redis 8 looks for keys that are not there, and crashes. A
-- command that the server does not know counts as permitted.

local denied = {}
for _, command in ipairs(given[1]) do
  local is_command, is_allowed = pcall(redis.acl_check_cmd, unpack(command))
  if is_command and not is_allowed then
    denied[#denied + 1] = command[1]
  end
end
return denied
