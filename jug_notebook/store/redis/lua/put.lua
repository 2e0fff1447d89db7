-- Store a blob, or report that it is there. It expires unless what names it is stored, too.
-- ARGV: address; size; seconds until it expires; optionally the content: "=" and the bytes, or "+" and the number of
-- chunks written before as c:ADDRESS:N. Returns -1 where there is none now, else the number of its chunks.
local P, call = KEYS[1], redis.call
local name = P .. 'v:' .. ARGV[1]
if call('EXISTS', name) == 0 then
  if #ARGV < 4 then return -1 end
  call('SET', name, ARGV[4], 'EX', ARGV[3])
end
local chunks = tonumber(call('GETRANGE', name, 0, 20):match('^%+(%d+)$') or 0)
local names = {name}
for i = 1, chunks do names[i + 1] = P .. 'c:' .. ARGV[1] .. ':' .. i - 1 end
for _, each in ipairs(names) do
  local left = call('TTL', each)
  if left == -2 then return -1 end
  if left >= 0 then call('EXPIRE', each, ARGV[3]) end
end
local time = call('TIME')
call('ZADD', P .. 'blobs', string.format('%d.%06d', time[1], time[2]), ARGV[1])
call('ZREM', P .. 'bin', ARGV[1])
call('HSET', P .. 'sizes', ARGV[1], ARGV[2])
return chunks
