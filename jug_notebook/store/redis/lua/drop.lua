-- Remove blobs that were not written or used since a time. One that was used within the last hour only gets an expiry:
-- whoever wrote it may be about to write what names it, and then it stays.
-- ARGV: a time; 1 for a dry run; addresses. Returns {number of blobs, bytes}.
local HOUR = 3600
local P, call = KEYS[1], redis.call
call('UNLINK', P .. 'full')  -- a script that has written something may go on, though the server is full
local time = call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local blobs, size = 0, 0
for i = 3, #ARGV do
  local address = ARGV[i]
  local at = tonumber(call('ZSCORE', P .. 'blobs', address) or nil)
  if at and at <= tonumber(ARGV[1]) then
    local name = P .. 'v:' .. address
    if call('EXISTS', name) == 1 then
      blobs, size = blobs + 1, size + tonumber(call('HGET', P .. 'sizes', address) or 0)
    end
    if ARGV[2] ~= '1' then
      local names, left = {name}, math.min(HOUR, math.ceil(at + HOUR - now))
      for chunk = 1, tonumber(call('GETRANGE', name, 0, 20):match('^%+(%d+)$') or 0) do
        names[chunk + 1] = P .. 'c:' .. address .. ':' .. chunk - 1
      end
      for _, each in ipairs(names) do
        if left > 0 then call('EXPIRE', each, left) else call('UNLINK', each) end
      end
      call('ZREM', P .. 'blobs', address)
      if left > 0 then call('ZADD', P .. 'bin', now + left, address) else call('HDEL', P .. 'sizes', address) end
    end
  end
end
for _, address in ipairs(call('ZRANGEBYSCORE', P .. 'bin', '-inf', now, 'LIMIT', 0, 1000)) do
  if call('EXISTS', P .. 'v:' .. address) == 0 then call('HDEL', P .. 'sizes', address) end
  call('ZREM', P .. 'bin', address)
end
return {blobs, size}
