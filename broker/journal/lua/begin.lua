local of, path, hash, held, carrier, executor, force = unpack(ARGV, 2)
local hash_field, carrier_field, starts_field = 'hash:' .. path, 'carrier:' .. path, 'starts:' .. path
local f = redis.call('HMGET', key, hash_field, carrier_field, 'result:' .. path, 'stored', 'inbox',
  'state_version', 'epoch', starts_field)
local current = epoch(f[7])
if not current then return 'lost' end
if current ~= of then return 'gone' end
local same = not f[1] or f[1] == hash
if f[3] and same then return {'found', f[3], f[5] or ''} end
if number(f[4]) < tonumber(held) then return 'lost' end
if not same then return {'mismatch', f[5] or ''} end
if f[2] and f[2] ~= '' and not force then
  -- A claim: the carrier, and after an @ the executor that has it in hand.
  local at = string.find(f[2], '@', 1, true)
  local busy = at and string.sub(f[2], at + 1)
  if busy and busy ~= executor and alive(busy) then return 'busy' end
  if not busy and f[2] ~= carrier then return 'duplicate' end
end
local starts, version = number(f[8]) + 1, number(f[6])
local claim = executor == '' and carrier or carrier .. '@' .. executor
-- The record's end is not put off: take, put_off and finish do that, and a call that outlasts its
-- record is one of a lost journal.
redis.call('HSET', key, hash_field, hash, carrier_field, claim, starts_field, starts)
if version == 0 then return starts end
return {'go', starts, redis.call('HGET', key, 'state') or '', version}
