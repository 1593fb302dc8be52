-- The operations that no rollout needs where nothing fails; ARGV[2] says which.

local function get(field) return redis.call('HGET', key, field) end
local current = epoch(get('epoch'))

local function release(of, inbox)
  if current == of and get('inbox') == inbox then
    set('inbox', '', 'idle_takes', math.max(0, number(get('idle_takes')) - 1))
  end
end

local function put_off(of, path, claim, carrier)
  if current == of and get('carrier:' .. path) == claim then set('carrier:' .. path, carrier) end
end

-- 0: nobody has begun on it; 1: somebody who is gone; 2: it is claimed.
local function standing(claim)
  if not claim or claim == '' then return 0 end
  local at = string.find(claim, '@', 1, true)
  return at and not alive(string.sub(claim, at + 1)) and 1 or 2
end

local function look(of, ...)
  if not current then return 'lost' end
  if current ~= of then return 'gone' end
  local calls = {}
  for _, path in ipairs({...}) do
    local f = redis.call('HMGET', key, 'hash:' .. path, 'result:' .. path, 'carrier:' .. path)
    if f[1] then calls[#calls + 1] = {path, f[1], f[2], standing(f[3])} end
  end
  return {'seen', get('inbox') or '', get('state') or '', number(get('state_version')), calls}
end

local function upload(of, inbox, attempt, first_taken_at, version, state, opened, ...)
  local owner = get('inbox')
  if current and current ~= of then return 0 end
  if owner and owner ~= '' and owner ~= inbox and alive(owner) then return 0 end
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
  current = current or of
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
  if current ~= of then return number(get('strikes')) end
  set('strikes', number(get('strikes')) + 1)
  return number(get('strikes'))
end

local operations = {release = release, put_off = put_off, look = look, upload = upload,
  restart = restart, strike = strike}
return operations[ARGV[2]](unpack(ARGV, 3))
