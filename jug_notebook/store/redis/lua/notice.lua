-- Append to a process's log; about the last 64 KB are kept. ARGV: process; text.
local name = KEYS[1] .. 'log:' .. ARGV[1]
if redis.call('APPEND', name, ARGV[2]) > 262144 then
  redis.call('SET', name, redis.call('GETRANGE', name, -65536, -1))
end
redis.call('EXPIRE', name, 2592000)
return redis.status_reply('OK')
