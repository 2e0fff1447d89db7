-- Removes blobs that were not written or touched since. ARGV: a time; 1 to only tell; addresses.
-- Answers how many were there, and their bytes.
local P, call = KEYS[1], redis.call
local blobs, size = 0, 0
for i = 3, #ARGV do
  local address = ARGV[i]
  local at = call('ZSCORE', P .. 'blobs', address)
  if at and tonumber(at) <= tonumber(ARGV[1]) then
    local name = P .. 'v:' .. address
    if call('EXISTS', name) == 1 then
      blobs, size = blobs + 1, size + tonumber(call('HGET', P .. 'sizes', address) or 0)
    end
    if ARGV[2] ~= '1' then
      for chunk = 1, tonumber(call('GETRANGE', name, 0, 20):match('^%+(%d+)$') or 0) do
        call('UNLINK', P .. 'c:' .. address .. ':' .. chunk - 1)
      end
      call('UNLINK', name)
      call('ZREM', P .. 'blobs', address)
      call('HDEL', P .. 'sizes', address)
    end
  end
end
return {blobs, size}
