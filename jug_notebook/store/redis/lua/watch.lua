-- Return the version; where it is still the one seen, register the watcher to be woken when it changes.
-- ARGV: the version seen; the watcher's name; 1 to register.
local P, call = KEYS[1], redis.call
local ver = call('GET', P .. 'ver') or '0'
if ARGV[2] ~= '' then
  call('DEL', P .. 'w:' .. ARGV[2])
  if ver == ARGV[1] and ARGV[3] == '1' then
    call('SADD', P .. 'watchers', ARGV[2])
  else
    call('SREM', P .. 'watchers', ARGV[2])
  end
end
return tonumber(ver)
