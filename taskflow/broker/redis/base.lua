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
--
-- All keys, after the prefix; `git grep -n "P .. 'leases:"` finds the scripts that use one. QUEUE is the number of a queue's name; a tail
-- is the request and number of a claim (8 bytes).
--
-- key                       type    content
-- meta                      hash    layout; the last seq, number of a name and of a session; the number of
--                                   schedules; pulse: the last heartbeat of any session; the shortest ttl;
--                                   where checks of indexes go on
-- names, texts              hash    "q:" and a queue's, "j:" and a job type's name -> its number; the reverse
-- j:ID, b:ID, o:ID          string  the job; its payload; its result, if these are large
-- o:FENCE                   string  a large result until its settlement arrives: see large_payloads.py
-- ready_list:QUEUE:PRIORITY list    ready jobs in order: see ready_lists.lua
-- returned:QUEUE:PRIORITY   zset    ready jobs that came out of order, score 0
-- priorities:QUEUE          zset    the priorities of ready jobs, score -priority
-- ready                     zset    names of queues with ready jobs that are not paused, score 0
-- paused                    set     names of paused queues
-- due                       zset    scheduled jobs by their time: seq, QUEUE, ID
-- held                      zset    ids of held jobs, by their seq
-- expiring                  zset    ids of jobs that have an expiry, by its time
-- keys                      hash    a key's digest -> the ids of live jobs that have it
-- tag:TAG                   zset    ids of jobs that have the tag, score 0
-- failures:CELL             zset    ids of failed jobs, by the time of their end. CELL: fingerprint (8 bytes),
--                                   QUEUE and the job's name (4 each), deploy
-- failure_cells             zset    every CELL that has jobs, score 0
-- kept:QUEUE:0, :1          zset    jobs that are kept, by the time of their end: seq, ID; failed ones in :1
-- fade                      zset    ids of ended jobs, by the time at which they are buried, then forgotten
-- crowded                   zset    queues that keep too many jobs: name, \1, 0 or 1 as in kept:
-- counts, totals            hash    QUEUE:STATUS -> jobs, and "whole", see check_indexes.lua; QUEUE:EVENT ->
--                                   moves
-- alive, dead               zset    ids of sessions by the time at which they lapse; by their number
-- session:SESSION           hash    the session: name, ttl, its last request, ...
-- leases:SESSION            hash    its leases: tail -> ID
-- stopping:SESSION          set     tails of its leases whose jobs are asked to stop
-- end_subscribers           set     ids of living sessions that subscribe to ends without a settlement
-- ends                      list    ids of jobs that have ended so; meta counts those that were dropped
-- schedule:NAME             hash    the schedule: see stored_schedules.lua
-- schedules                 zset    names of all schedules, by the time at which upkeep checks them, or
--                                   infinite
-- declares:SESSION          set     names of the schedules that the session declares
-- waiting:, waiting:NAME    zset    listeners that wait for jobs of every queue, of the one with this name, by
--                                   the time
-- nudged                    zset    listeners that were nudged and have not claimed since, by the time of that
-- upkeepers                 zset    listeners that wait for the next due time
-- awaited                   hash    ids of jobs whose end is awaited -> the listeners that await it
-- spoilt                    hash    ids of unreadable jobs -> what is wrong
-- acts                      zset    the audit log: time (8 bytes), ID of the act, its body; by its number
-- bad:...                   any     unreadable values that were set aside
-- reindexing, reindexed     string  a reindex runs, or ran lately
--
-- A listener is a text of 16 characters. Messages for it are published under n:LISTENER: a topic, or \0 and msgpack of ended jobs.

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

-- The maximum number of values in one command. Lua's unpack has room for 8,000.
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

-- Bytes. A larger record is neither unpacked nor sent to a client. No client writes one: large payloads and results are stored apart.
local LARGEST = 4194304
