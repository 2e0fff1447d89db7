-- Find the store, or make it. ARGV: an id for a new store; the format of this version. Returns {id, format}.
local P = KEYS[1]
if redis.call('EXISTS', P .. 'id') == 0 then
  redis.call('SET', P .. 'id', ARGV[1])
  redis.call('SET', P .. 'format', ARGV[2], 'NX')
end
return {redis.call('GET', P .. 'id'), redis.call('GET', P .. 'format')}
