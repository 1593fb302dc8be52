-- What is committed of each run: broker/journal/runs.py says what each operation means.
--   KEYS[1]  warren:run:{<run>}: info generation created_at cancelled
--   KEYS[1]:<generation>          published complete, per shard totals:S, per repeat repeat:R
--   KEYS[1]:<generation>:<repeat> bitmap over task indices
--   KEYS[1]:generations           set of the generations that anything is known of
--   KEYS[2]  warren:runs: all registered runs by created_at
--   ARGV     operation, then the operation's own

local key, all = KEYS[1], KEYS[2]

local function of_generation(generation)
  redis.call('SADD', key .. ':generations', generation)
  return key .. ':' .. generation
end

local function register(run, generation, created_at, info)
  local known = redis.call('HMGET', key, 'generation', 'created_at')
  if known[1] and known[1] ~= generation then
    if tonumber(known[2]) > tonumber(created_at) then return end
    redis.call('HDEL', key, 'cancelled')
  end
  redis.call('HSET', key, 'generation', generation, 'created_at', created_at, 'info', info)
  redis.call('ZADD', all, created_at, run)
end

local function published(generation, count, complete)
  local record = of_generation(generation)
  if tonumber(count) >= tonumber(redis.call('HGET', record, 'published') or 0) then
    redis.call('HSET', record, 'published', count, 'complete', complete)
  end
end

local function mark(generation, shard, totals, ...)
  local record, rows = of_generation(generation), cmsgpack.unpack((...))
  for i = 1, #rows, 2 do
    redis.call('SETBIT', record .. ':' .. rows[i + 1], rows[i], 1)
    redis.call('HSET', record, 'repeat:' .. rows[i + 1], 1)
  end
  redis.call('HSET', record, 'totals:' .. shard, totals)
end

local function progress_of(run_key)
  local known = redis.call('HMGET', run_key, 'info', 'generation', 'cancelled')
  if not known[1] then return false end
  local record, totals, committed = run_key .. ':' .. known[2], {}, 0
  local fields = redis.call('HGETALL', record)
  for i = 1, #fields, 2 do
    if fields[i]:sub(1, 7) == 'totals:' then totals[#totals + 1] = fields[i + 1] end
    if fields[i]:sub(1, 7) == 'repeat:' then
      committed = committed + redis.call('BITCOUNT', record .. ':' .. fields[i]:sub(8))
    end
  end
  local mark = redis.call('HMGET', record, 'published', 'complete')
  return {known[1], known[3] or '0', mark[1] or '0', mark[2] or '0', committed, totals}
end

local function progress() return progress_of(key) end

local function list()
  local standing = {}
  for _, run in ipairs(redis.call('ZREVRANGE', all, 0, -1)) do
    standing[#standing + 1] = progress_of('warren:run:{' .. run .. '}') or nil
  end
  return standing
end

local function cancel()
  if redis.call('EXISTS', key) == 0 then return 0 end
  redis.call('HSET', key, 'cancelled', 1)
  return 1
end

local function forget(run)
  for _, generation in ipairs(redis.call('SMEMBERS', key .. ':generations')) do
    local record = key .. ':' .. generation
    for _, field in ipairs(redis.call('HKEYS', record)) do
      if field:sub(1, 7) == 'repeat:' then redis.call('DEL', record .. ':' .. field:sub(8)) end
    end
    redis.call('DEL', record)
  end
  redis.call('DEL', key, key .. ':generations')
  redis.call('ZREM', all, run)
end

local operations = {register = register, published = published, mark = mark,
  progress = progress, list = list, cancel = cancel, forget = forget}
return operations[ARGV[1]](unpack(ARGV, 2))
