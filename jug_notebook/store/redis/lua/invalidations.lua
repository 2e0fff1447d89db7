-- after: records scheduler reuse
-- Who began the rounds that tasks are in. ARGV: keys, packed.
-- Answers version, more to follow, {from round, at, user, why} of each; none, {}.
take_up()
flow()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do
  local raw = call('HGET', P .. 'i', key)
  local said = raw and unpacked(raw)
  found[i] = said and said[1] + 1 == card(key)[ROUND] and {said[1], format('%.17g', said[2]), said[3], said[4]} or {}
end
local ver, more = finish()
return {ver, more, found}
