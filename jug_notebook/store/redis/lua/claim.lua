-- Claim attempts at tasks for a worker; if it got them all, append that to the log.
-- ARGV: the store's id; the writer; the worker; a frame that says so; 1 if they were won before, and
-- the server may have lost that; the name of each attempt.
-- Returns who has each: empty for this worker, else another's name; nil while nothing is claimed.
local P, call = KEYS[1], redis.call
if call('GET', P .. 'id') ~= ARGV[1] then return redis.error_reply('GONE ' .. (call('GET', P .. 'id') or '')) end
if ARGV[5] == '0' and call('EXISTS', P .. 'returned') == 1 then return false end
local owners, won = {}, 0
for i = 6, #ARGV do
  local owner = ''
  if call('HSETNX', P .. 'claims', ARGV[i], ARGV[3]) == 0 then owner = call('HGET', P .. 'claims', ARGV[i]) end
  if owner == ARGV[3] then owner = '' end  -- by this very call, whose reply was lost
  owners[#owners + 1] = owner
  if owner == '' then won = won + 1 end
end
if won == #owners then call('XADD', P .. 'log', '*', ARGV[2], ARGV[4]) end
return owners
