-- Append frames to the log, with the bodies that belong to them.
-- ARGV: the store's id; the writer; 1 to append even if the server is full; then four lists, each behind its length: places of bodies and the bodies themselves;
-- frames; claims that are over; addresses of blobs that are named from now on.
local P, call = KEYS[1], redis.call
if call('GET', P .. 'id') ~= ARGV[1] then return redis.error_reply('GONE ' .. (call('GET', P .. 'id') or '')) end
if ARGV[3] == '1' then call('UNLINK', P .. 'full') end  -- a script that has written something may go on, though full
local at, STEP = 4, 4000  -- a call takes fewer than 8000 arguments
local function each_part(act)
  local first, last = at + 1, at + tonumber(ARGV[at])
  for i = first, last, STEP do act(i, math.min(i + STEP - 1, last)) end
  at = last + 1
end
each_part(function(i, j) call('HSET', P .. 'bodies', unpack(ARGV, i, j)) end)
each_part(function(i, j)
  local fields = {}
  for k = i, j do
    fields[#fields + 1] = ARGV[2]
    fields[#fields + 1] = ARGV[k]
  end
  call('XADD', P .. 'log', '*', unpack(fields))
end)
each_part(function(i, j) call('HDEL', P .. 'claims', unpack(ARGV, i, j)) end)
each_part(function(i, j)
  local time = call('TIME')
  for k = i, j do
    local address, name = ARGV[k], P .. 'v:' .. ARGV[k]
    if call('EXISTS', name) == 1 then
      call('PERSIST', name)
      for n = 1, tonumber(call('GETRANGE', name, 0, 20):match('^%+(%d+)$') or 0) do
        call('PERSIST', P .. 'c:' .. address .. ':' .. n - 1)
      end
      call('ZADD', P .. 'blobs', string.format('%d.%06d', time[1], time[2]), address)
      call('ZREM', P .. 'bin', address)
    end
  end
end)
return redis.status_reply('OK')
