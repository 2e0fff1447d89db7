-- All processes. Returns {packed `WorkerInfo`, 1 if alive as far as is known, seconds since its last heartbeat} each.
local P, call = KEYS[1], redis.call
local time = call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local found = {}
local infos = call('HGETALL', P .. 'info')
for i = 1, #infos, 2 do
  local beat = call('ZSCORE', P .. 'beats', infos[i])
  local since = beat or call('ZSCORE', P .. 'left', infos[i]) or call('ZSCORE', P .. 'late', infos[i]) or 0
  local age = math.max(0, now - tonumber(since))
  found[#found + 1] = {infos[i + 1], beat and age <= 30 and 1 or 0, string.format('%.6f', age)}
end
return found
