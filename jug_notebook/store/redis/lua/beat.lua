-- Heartbeats of processes; the first receives its orders.
-- ARGV: the store's id; the last order that the first received; then name and packed `WorkerInfo` of each.
-- Returns its later orders as {id, {"o", order}} each.
local P, call, DAY = KEYS[1], redis.call, 86400
if call('GET', P .. 'id') ~= ARGV[1] then return redis.error_reply('GONE ' .. (call('GET', P .. 'id') or '')) end
call('UNLINK', P .. 'full')  -- a script that has written something may go on, though the server is full
local time = call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local at = string.format('%.6f', now)
if now - tonumber(call('GET', P .. 'tick') or 0) > 5 then  -- the server was away: all may first report that they live
  call('SET', P .. 'grace', 1, 'PX', 30000)
end
call('SET', P .. 'tick', at)
for i = 3, #ARGV, 2 do
  call('HSET', P .. 'info', ARGV[i], ARGV[i + 1])
  call('ZADD', P .. 'beats', at, ARGV[i])
end
for _, process in ipairs(call('ZRANGEBYSCORE', P .. 'beats', '-inf', now - DAY, 'LIMIT', 0, 100)) do
  call('ZREM', P .. 'beats', process)
  call('HDEL', P .. 'info', process)
  call('HDEL', P .. 'left', process)
end
return call('XRANGE', P .. 'orders:' .. ARGV[3], '(' .. ARGV[2], '+')
