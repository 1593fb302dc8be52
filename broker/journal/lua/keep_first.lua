local fresh, now, path, hash, result = unpack(ARGV, 2)
local hash_field, result_field = 'hash:' .. path, 'result:' .. path
local f = redis.call('HMGET', key, 'epoch', hash_field, result_field, 'stored', 'first_taken_at')
local current = epoch(f[1])
if current == '' then return 'committed' end
if f[3] then return {f[2], f[3]} end
if not current then
  set('epoch', fresh, 'attempt', 1, 'phase', 'run', 'first_taken_at', now, 'stored', 1,
    hash_field, hash, result_field, result)
  return 'stored'
end
local first = f[5]
if number(first) == 0 then first = now end
set(hash_field, hash, result_field, result, 'carrier:' .. path, '', 'stored', number(f[4]) + 1,
  'idle_takes', 0, 'first_taken_at', first)
return 'stored'
