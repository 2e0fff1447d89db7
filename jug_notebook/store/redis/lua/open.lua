-- Finds the store, or makes it.
-- ARGV: an id, should it be new; the format that we speak. Answers its id, its format, its version.
local P = KEYS[1]
redis.call('SET', P .. 'id', ARGV[1], 'NX')
redis.call('SET', P .. 'format', ARGV[2], 'NX')
return {redis.call('GET', P .. 'id'), redis.call('GET', P .. 'format'), redis.call('GET', P .. 'ver') or '0'}
