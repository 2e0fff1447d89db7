-- after: cards board reuse
-- The outcomes that tasks have. ARGV: keys, packed.
-- Answers version, more to follow, bodies, and for each key {body, proof …} as numbers; none, {}.
take_up()
flow()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do
  local c = card(key)
  local whose, number = held(key)
  found[i] = c[KIND] ~= 0 and whose and bodies_of(key, whose, number) or {}
end
local ver, more = finish()
return {ver, more, read_bodies(), found}
