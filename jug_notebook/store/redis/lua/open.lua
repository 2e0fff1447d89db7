-- Find the store, or make it. ARGV: an id for a new store; the format of this version. Returns {id, format}.
local P = KEYS[1]
redis.call('SET', P .. 'id', ARGV[1], 'NX')
redis.call('SET', P .. 'format', ARGV[2], 'NX')
return {redis.call('GET', P .. 'id'), redis.call('GET', P .. 'format')}
