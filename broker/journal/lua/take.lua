local fresh, inbox, counts, now, takes = unpack(ARGV, 2)
local f = redis.call('HMGET', key, 'epoch', 'inbox', 'idle_takes', 'first_taken_at')
local current, owner = epoch(f[1]), f[2]
if current == '' then return 'committed' end
if not current then
  set('epoch', fresh, 'attempt', 1, 'phase', 'run', 'idle_takes', takes, 'first_taken_at', now,
    'inbox', inbox)
  return 'fresh'
end
if owner and owner ~= '' and owner ~= inbox and alive(owner) then return {'owned', owner} end
local first = f[4]
if number(first) == 0 then first = now end
set('idle_takes', number(f[3]) + counts, 'first_taken_at', first, 'inbox', inbox)
return {'run', redis.call('HGETALL', key)}
