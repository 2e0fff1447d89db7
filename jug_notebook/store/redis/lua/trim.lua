-- Let a snapshot take the place of the log up to an entry. Readers that hadn't got so far learn it from the entry "m".
-- ARGV: the store's id; the name of the snapshot's list; the last entry that it covers; seconds for which the former one
-- stays, for those who are reading it; the length of the list.
local P, call = KEYS[1], redis.call
if call('GET', P .. 'id') ~= ARGV[1] then return redis.error_reply('GONE ' .. (call('GET', P .. 'id') or '')) end
local former = call('HGET', P .. 'snapshot', 'name')
if former then call('EXPIRE', P .. former, ARGV[4]) end
call('PERSIST', P .. ARGV[2])
call('HSET', P .. 'snapshot', 'name', ARGV[2], 'upto', ARGV[3], 'frames', ARGV[5])
local ms, seq = ARGV[3]:match('(%d+)%-(%d+)')
call('XTRIM', P .. 'log', 'MINID', ms .. '-' .. tonumber(seq) + 1)
return call('XADD', P .. 'log', '*', 'm', ARGV[3])
