-- What gateways of one model share: broker/shared/base.py says what each operation means.
--   draw      KEYS one bucket each: level at (Redis seconds); ARGV[2..] amount per_minute burst_s
--   spend     KEYS[1] what a run has spent: tokens cost_usd
--   the rest  KEYS[1] the model's newest update: id update phase error version
--             KEYS[2] who leads it, expiring
-- ARGV[1] is the operation.

local policy, leader = KEYS[1], KEYS[2]

local function draw(...)
  local now = redis.call('TIME')
  now = tonumber(now[1]) + tonumber(now[2]) / 1e6
  local wait, args = 0, {...}
  for i, key in ipairs(KEYS) do
    local amount = tonumber(args[3 * i - 2])
    local rate = tonumber(args[3 * i - 1]) / 60
    local most = math.max(rate * tonumber(args[3 * i]), 1)
    local known = redis.call('HMGET', key, 'level', 'at')
    local level = tonumber(known[1] or most)
    level = math.min(level + math.max(now - tonumber(known[2] or now), 0) * rate, most)
    level = math.min(level - amount, most)
    redis.call('HSET', key, 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
    redis.call('PEXPIRE', key, math.ceil((most - level) / rate * 1000) + 1000)
    wait = math.max(wait, -level / rate)
  end
  return string.format('%.6f', wait)
end

local function spend(tokens, cost, keep_s)
  redis.call('HINCRBY', KEYS[1], 'tokens', tokens)
  redis.call('HINCRBYFLOAT', KEYS[1], 'cost_usd', cost)
  redis.call('EXPIRE', KEYS[1], keep_s)
end

local function state()
  local f = redis.call('HMGET', policy, 'update', 'phase', 'error', 'version')
  return f[1] and {f[1], f[2], f[3] or '', f[4] or ''} or false
end

local function is(id)
  return redis.call('HGET', policy, 'id') == id
end

local function open()
  local phase = redis.call('HGET', policy, 'phase')
  return phase == 'asked' or phase == 'loading'
end

local function ask(id, update)
  if not is(id) and not open() then
    redis.call('HSET', policy, 'id', id, 'update', update, 'phase', 'asked', 'error', '')
  end
  return state()
end

local function take(who, lease_ms)
  local leads = redis.call('GET', leader)
  if leads and leads ~= who then return false end
  redis.call('SET', leader, who, 'PX', lease_ms)
  return true
end

local function lead(id, who, lease_ms)
  if not is(id) or not open() or not take(who, lease_ms) then return 0 end
  redis.call('HSET', policy, 'phase', 'loading')
  return 1
end

local function restore(id, who, lease_ms)
  local going_on = redis.call('GET', leader) == who
  local done = is(id) and redis.call('HGET', policy, 'phase') == 'done'
  if not going_on and not done then return 0 end
  return take(who, lease_ms) and 1 or 0
end

local function restored(who)
  if redis.call('GET', leader) == who then redis.call('DEL', leader) end
end

local function settle(id, update, error, version)
  local known = redis.call('HGET', policy, 'id')
  if known and known ~= id then return end
  local phase = error == '' and 'done' or 'failed'
  redis.call('HSET', policy, 'id', id, 'update', update, 'phase', phase, 'error', error)
  if error == '' then redis.call('HSET', policy, 'version', version) end
  redis.call('DEL', leader)
end

local function withdraw(id)
  if not is(id) or redis.call('HGET', policy, 'phase') ~= 'asked' then return 0 end
  redis.call('HSET', policy, 'phase', 'failed', 'error', 'nobody took it')
  return 1
end

local operations = {draw = draw, spend = spend, policy = state, ask = ask, lead = lead, settle = settle,
  restore = restore, restored = restored, withdraw = withdraw}
return operations[ARGV[1]](unpack(ARGV, 2))
