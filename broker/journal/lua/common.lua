-- What each script of the journal begins with. broker/journal/base.py says what the operations mean,
-- record.py and rules.py state the same rules in Python. The frequent ones have a script each, since
-- every function that a script defines is made anew at each call, and their answers are tables only
-- where they have to be.
--   KEYS[1]  the record;  KEYS[2]  for a verifier's record, its rollout's
--   ARGV     milliseconds to keep what changed, then the operation's own
-- Fields of a record: epoch phase inbox attempt idle_takes strikes state state_version
-- first_taken_at stored previous, and per call path hash:P carrier:P starts:P result:P.

local key, keep = KEYS[1], tonumber(ARGV[1])

local function number(value) return tonumber(value or 0) end
local function alive(inbox) return redis.call('EXISTS', 'warren:lease:' .. inbox) == 1 end

-- A second write would make a transaction in Redis' log, and cost as much as the first. So a record
-- is kept for an eighth longer, and most changes leave its expiry alone.
local function set(...)
  redis.call('HSET', key, ...)
  if redis.call('PTTL', key) < keep then
    redis.call('PEXPIRE', key, keep + math.floor(keep / 8))
  end
end

-- The epoch that was found: false without a record, '' for a tombstone (a verifier's goes with its
-- rollout's).
local function epoch(found)
  if not found and KEYS[2] and redis.call('HGET', KEYS[2], 'phase') == 'committed' then return '' end
  return found
end

