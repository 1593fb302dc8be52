local of, path, hash, held, result, reply, inline, version, state = unpack(ARGV, 2)
local hash_field, result_field, carrier_field = 'hash:' .. path, 'result:' .. path, 'carrier:' .. path
local f = redis.call('HMGET', key, hash_field, result_field, 'stored', 'inbox', 'state_version',
  'epoch')
local current = epoch(f[6])
if not current then return 'lost' end
if current ~= of then return 'gone' end
local same = not f[1] or f[1] == hash
local inbox = f[4] or ''
if f[2] and same then return {'known', inbox, f[2]} end
if number(f[3]) < tonumber(held) then return 'lost' end
if not same then return 'gone' end
local stored = number(f[3]) + 1
if not version then
  set(hash_field, hash, result_field, result, carrier_field, '', 'stored', stored, 'idle_takes', 0)
elseif number(f[5]) ~= tonumber(version) then
  return 'gone'
else
  set(hash_field, hash, result_field, result, carrier_field, '', 'stored', stored, 'idle_takes', 0,
    'state', state, 'state_version', tonumber(version) + 1)
end
-- Told only once it is stored. A user who may not publish, or nobody who listens: told otherwise.
if reply ~= '' and inbox ~= '' then
  if inline == '1' then reply = reply .. result end
  local heard = redis.pcall('PUBLISH', 'warren:inbox:' .. inbox, reply)
  if type(heard) == 'number' and heard > 0 then return '!' .. inbox end
end
return '@' .. inbox
