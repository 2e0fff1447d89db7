-- States of tasks, as numbers; -1 for an unknown task. ARGV: keys, packed. Returns {version, more, numbers}.
-- Called over and over while someone waits, so it reads one byte of a record, and leaves pending work to other scripts.
local P, call = KEYS[1], redis.call
local STATE_AT = 18
local keys, found = cmsgpack.unpack(ARGV[1]), {}
for from = 1, #keys, 2000 do
  for _, raw in ipairs(call('HMGET', P .. 't', unpack(keys, from, math.min(#keys, from + 1999)))) do
    found[#found + 1] = raw and struct.unpack('>b', raw, STATE_AT) or -1
  end
end
return {tonumber(call('GET', P .. 'ver') or 0), call('EXISTS', P .. 'work'), found}
