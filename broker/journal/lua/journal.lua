-- The journal's operations: broker/journal/base.py says what each means, record.py and rules.py
-- state the same rules in Python.
--   KEYS[1]  the record;  KEYS[2]  for a verifier's record, its rollout's
--   ARGV     operation, milliseconds to keep what changed, then the operation's own
-- The frequent ones come first and return at once: what follows is not even defined then.
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
  local f = redis.call('HMGET', key, 'epoch', 'inbox', 'idle_takes', 'first_taken_at')
  local current, owner = f[1] or epoch(), f[2]
  if current == '' then return {'committed'} end
  if another_lives(owner, inbox) then return {'owned', owner} end
  local first = f[4]
  if number(first) == 0 then first = now end
  local changed = {'idle_takes', number(f[3]) + counts, 'first_taken_at', first, 'inbox', inbox}
  if current then set(unpack(changed))
  else set('epoch', fresh, 'attempt', 1, 'phase', 'run', unpack(changed)) end
  return {'run', redis.call('HGETALL', key)}
end
if op == 'take' then return take(unpack(ARGV, 3)) end

-- A claim: the carrier, and after an @ the executor that has it in hand.
local function claimants(claim)
  local at = string.find(claim, '@', 1, true)
  if not at then return claim, '' end
  return string.sub(claim, 1, at - 1), string.sub(claim, at + 1)
end

local function begin(of, path, hash, carrier, executor, claim, held, force)
  local result_field, starts_field = 'result:' .. path, 'starts:' .. path
  local f = redis.call('HMGET', key, 'hash:' .. path, 'carrier:' .. path, result_field,
    'stored', 'inbox', 'state_version', 'epoch', starts_field)
  local current = f[7] or epoch()
  if not current then return {'lost'} end
  if current ~= of then return {'gone'} end
  local same = not f[1] or f[1] == hash
  if f[3] and same then return {'found', f[3], f[5] or ''} end
  if number(f[4]) < tonumber(held) then return {'lost'} end
  if not same then return {'mismatch', f[5] or ''} end
  if f[2] and f[2] ~= '' and force == '0' then
    local another, busy = claimants(f[2])
    if another ~= carrier then return {'duplicate'} end
    if busy ~= '' and busy ~= executor and alive(busy) then return {'busy'} end
  end
  local starts, version = number(f[8]) + 1, number(f[6])
  set('hash:' .. path, hash, 'carrier:' .. path, claim, starts_field, starts)
  return {'go', starts, version > 0 and get('state') or '', version}
end
if op == 'begin' then return begin(unpack(ARGV, 3)) end

local function finish(of, path, hash, held, result, version, state)
  local f = redis.call('HMGET', key, 'hash:' .. path, 'result:' .. path, 'stored', 'inbox',
    'state_version', 'epoch', 'carrier:' .. path)
  local current = f[6] or epoch()
  if not current then return {'lost'} end
  if current ~= of then return {'gone'} end
  local same = not f[1] or f[1] == hash
  local inbox = f[4] or ''
  if f[2] and same then return {'known', inbox, f[2]} end
  if number(f[3]) < tonumber(held) then return {'lost'} end
  if not same then return {'gone'} end
  if version ~= '' then
    if number(f[5]) ~= tonumber(version) then return {'gone'} end
    redis.call('HSET', key, 'state', state, 'state_version', tonumber(version) + 1)
  end
  if f[7] then redis.call('HDEL', key, 'carrier:' .. path) end
  set('hash:' .. path, hash, 'result:' .. path, result, 'stored', number(f[3]) + 1,
    'idle_takes', 0)
  return {'won', inbox}
end
if op == 'finish' then return finish(unpack(ARGV, 3)) end

local function ended(of)
  if epoch() == of then set('phase', 'ended') end
end
if op == 'ended' then return ended(unpack(ARGV, 3)) end

local function committed()
  for i = 1, #KEYS do
    key = KEYS[i]
    redis.call('DEL', key, key .. '/verify')
    set('epoch', '', 'phase', 'committed')
  end
end
if op == 'committed' then return committed() end

local function release(of, inbox)
  if epoch() == of and get('inbox') == inbox then
    set('inbox', '', 'idle_takes', math.max(0, number(get('idle_takes')) - 1))
  end
end

local function put_off(of, path, claim, carrier)
  if epoch() == of and get('carrier:' .. path) == claim then set('carrier:' .. path, carrier) end
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

local operations = {release = release, put_off = put_off, look = look, upload = upload,
  restart = restart, strike = strike}
return operations[op](unpack(ARGV, 3))
