-- after: records scheduler reuse
-- Something of each task as it is now. ARGV: what; keys, packed. Returns {version, more, a list per key, empty for none}.
local READ = {
  -- the sealed acceptance that holds
  acceptance = function(key) return valid_acceptance(key, record(key)) and {call('HGET', P .. 'y', key)} end,
  -- {round, inputs}
  inputs = function(key)
    local c = record(key)
    return c[KIND] ~= 0 and c[INPUTS] ~= '' and {c[ROUND], c[INPUTS]}
  end,
  -- who began the current round: {from round, at, user, why}
  invalidation = function(key)
    local raw = call('HGET', P .. 'i', key)
    local info = raw and unpacked(raw)
    return info and info[1] + 1 == record(key)[ROUND] and {info[1], format('%.17g', info[2]), info[3], info[4]}
  end,
}
load_work()
run_work()
local keys, found = unpacked(ARGV[2]), {}
prefetch(keys)
for i, key in ipairs(keys) do found[i] = READ[ARGV[1]](key) or {} end
return finish(found)
