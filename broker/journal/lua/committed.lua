-- Here KEYS are records of rollouts, and those of their verifiers go with them.
local all = {}
for i = 1, #KEYS do
  all[i], all[#KEYS + i] = KEYS[i], KEYS[i] .. '/verify'
end
redis.call('DEL', unpack(all))
for i = 1, #KEYS do
  redis.call('HSET', KEYS[i], 'epoch', '', 'phase', 'committed')
  redis.call('PEXPIRE', KEYS[i], keep)
end
