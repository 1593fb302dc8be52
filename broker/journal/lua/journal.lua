-- The journal's operations: broker/journal/base.py says what each means, record.py and rules.py
-- state the same rules in Python.
--   KEYS[1]  the record;  KEYS[2]  for a verifier's record, its rollout's
--   ARGV     operation, milliseconds to keep what changed, then the operation's own
-- Fields of a record: epoch phase inbox attempt idle_takes strikes state state_version
-- first_taken_at stored previous, and per call path hash:P carrier:P starts:P result:P.

local key, op, keep = KEYS[1], ARGV[1], ARGV[2]

local function get(field) return redis.call('HGET', key, field) end
local function set(...)
  redis.call('HSET', key, ...)
  redis.call('PEXPIRE', key, keep)
end
local function number(value) return tonumber(value or 0) end
local function alive(inbox) return redis.call('EXISTS', 'warren:lease:' .. inbox) == 1 end
local function another_lives(owner, inbox)
  return owner and owner ~= '' and owner ~= inbox and alive(owner)
end

-- The epoch: false without a record, '' for a tombstone (a verifier's goes with its rollout's).
local function epoch()
  local found = get('epoch')
  if not found and KEYS[2] and redis.call('HGET', KEYS[2], 'phase') == 'committed' then return '' end
  return found
end

local function take(fresh, inbox, counts, now)
  local current = epoch()
  if current == '' then return {'committed'} end
  local owner = get('inbox')
  if another_lives(owner, inbox) then return {'owned', owner} end
  if not current then set('epoch', fresh, 'attempt', 1, 'phase', 'run') end
  redis.call('HINCRBY', key, 'idle_takes', counts)
  if number(get('first_taken_at')) == 0 then set('first_taken_at', now) end
  set('inbox', inbox)
  return {'run', redis.call('HGETALL', key)}
end

local function release(of, inbox)
  if epoch() == of and get('inbox') == inbox then
    set('inbox', '', 'idle_takes', math.max(0, number(get('idle_takes')) - 1))
  end
end

-- A claim: the carrier, and after an @ the executor that has it in hand.
local function claimants(claim)
  local at = string.find(claim, '@', 1, true)
  if not at then return claim, '' end
  return string.sub(claim, 1, at - 1), string.sub(claim, at + 1)
end

local function begin(of, path, hash, carrier, executor, claim, held, force)
  local current = epoch()
  if not current then return {'lost'} end
  if current ~= of then return {'gone'} end
  local result_field = 'result:' .. path
  local f = redis.call('HMGET', key, 'hash:' .. path, 'carrier:' .. path, result_field,
    'stored', 'inbox', 'state_version')
  local same = not f[1] or f[1] == hash
  if f[3] and same then return {'found', f[3], f[5] or ''} end
  if number(f[4]) < tonumber(held) then return {'lost'} end
  if not same then return {'mismatch', f[5] or ''} end
  if f[2] and f[2] ~= '' and force == '0' then
    local another, busy = claimants(f[2])
    if another ~= carrier then return {'duplicate'} end
    if busy ~= '' and busy ~= executor and alive(busy) then return {'busy'} end
  end
  local starts = redis.call('HINCRBY', key, 'starts:' .. path, 1)
  set('hash:' .. path, hash, 'carrier:' .. path, claim)
  return {'go', starts, get('state') or '', number(f[6])}
end

local function put_off(of, path, claim, carrier)
  if epoch() == of and get('carrier:' .. path) == claim then set('carrier:' .. path, carrier) end
end

local function finish(of, path, hash, held, result, version, state)
  local current = epoch()
  if not current then return {'lost'} end
  if current ~= of then return {'gone'} end
  local f = redis.call('HMGET', key, 'hash:' .. path, 'result:' .. path, 'stored', 'inbox',
    'state_version')
  local same = not f[1] or f[1] == hash
  local inbox = f[4] or ''
  if f[2] and same then return {'known', inbox, f[2]} end
  if number(f[3]) < tonumber(held) then return {'lost'} end
  if not same then return {'gone'} end
  if version ~= '' then
    if number(f[5]) ~= tonumber(version) then return {'gone'} end
    redis.call('HSET', key, 'state', state, 'state_version', tonumber(version) + 1)
  end
  redis.call('HDEL', key, 'carrier:' .. path)
  set('hash:' .. path, hash, 'result:' .. path, result, 'stored', number(f[3]) + 1,
    'idle_takes', 0)
  return {'won', inbox}
end

local function look(of, ...)
  local current = epoch()
  if not current then return {'lost'} end
  if current ~= of then return {'gone'} end
  local calls = {}
  for _, path in ipairs({...}) do
    local f = redis.call('HMGET', key, 'hash:' .. path, 'result:' .. path, 'carrier:' .. path)
    if f[1] then calls[#calls + 1] = {path, f[1], f[2], f[3]} end
  end
  return {'seen', get('inbox') or '', get('state') or '', number(get('state_version')), calls}
end

local function upload(of, inbox, attempt, first_taken_at, version, state, opened, ...)
  local current = epoch()
  if current and current ~= of or another_lives(get('inbox'), inbox) then return 0 end
  local results, missing = {...}, {}
  local first = 2 * tonumber(opened) + 1
  for i = first, #results, 3 do
    local f = redis.call('HMGET', key, 'hash:' .. results[i], 'result:' .. results[i])
    if not f[2] then missing[#missing + 1] = i
    elseif f[1] ~= results[i + 1] or f[2] ~= results[i + 2] then return 0 end
  end
  if not current then
    set('epoch', of, 'attempt', attempt, 'phase', 'run', 'first_taken_at', first_taken_at)
  end
  for _, i in ipairs(missing) do
    redis.call('HDEL', key, 'carrier:' .. results[i])
    redis.call('HSET', key, 'hash:' .. results[i], results[i + 1],
      'result:' .. results[i], results[i + 2])
  end
  for i = 1, first - 1, 2 do
    if redis.call('HSETNX', key, 'hash:' .. results[i], results[i + 1]) == 1 then
      redis.call('HSET', key, 'starts:' .. results[i], 1)
    end
  end
  if tonumber(version) > number(get('state_version')) then
    redis.call('HSET', key, 'state', state, 'state_version', version)
  end
  set('inbox', inbox, 'stored', number(get('stored')) + #missing)
  return 1
end

local function restart(of, fresh)
  local current = epoch() or of
  local attempt = number(get('attempt'))
  if get('previous') == of and number(get('first_taken_at')) == 0 then return attempt end
  if current ~= of then return false end
  local strikes = get('strikes') or 0
  redis.call('DEL', key)
  attempt = math.max(1, attempt) + 1
  set('epoch', fresh, 'attempt', attempt, 'phase', 'run', 'strikes', strikes, 'previous', of)
  return attempt
end

local function strike(of)
  if epoch() ~= of then return number(get('strikes')) end
  set('strikes', number(get('strikes')) + 1)
  return number(get('strikes'))
end

local function ended(of)
  if epoch() == of then set('phase', 'ended') end
end

local function committed()
  for i = 1, #KEYS do
    key = KEYS[i]
    redis.call('DEL', key, key .. '/verify')
    set('epoch', '', 'phase', 'committed')
  end
end

local operations = {take = take, release = release, begin = begin, put_off = put_off,
  finish = finish, look = look,
  upload = upload, restart = restart, strike = strike, ended = ended, committed = committed}
return operations[op](unpack(ARGV, 3))
