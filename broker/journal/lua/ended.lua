if epoch(redis.call('HGET', key, 'epoch')) == ARGV[2] then set('phase', 'ended') end
