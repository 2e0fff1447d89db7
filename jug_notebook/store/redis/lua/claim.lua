-- Claim attempts at tasks for a worker, and append what it got to the log.
-- ARGV: the store's id; the writer; the worker; a frame up to its leases; then name and packed lease of each attempt.
-- Returns who has each: empty for this worker, else another's name; nil while nothing is claimed.
local P, call = KEYS[1], redis.call
if call('GET', P .. 'id') ~= ARGV[1] then return redis.error_reply('GONE ' .. (call('GET', P .. 'id') or '')) end
if call('EXISTS', P .. 'returned') == 1 then return false end
local owners, won = {}, {}
for i = 5, #ARGV, 2 do
  local owner = ''
  if call('HSETNX', P .. 'claims', ARGV[i], ARGV[3]) == 0 then owner = call('HGET', P .. 'claims', ARGV[i]) end
  if owner == ARGV[3] then owner = '' end  -- by this very call, whose reply was lost
  owners[#owners + 1] = owner
  if owner == '' then won[#won + 1] = ARGV[i + 1] end
end
if #won > 0 then
  call('XADD', P .. 'log', '*', ARGV[2], ARGV[4] .. struct.pack('>BI4', 0xdd, #won) .. table.concat(won))
end
return owners
