-- after: records scheduler reuse
-- Rounds and inputs of tasks as they are now. ARGV: keys, packed. Returns {version, more, {round, inputs} or {} each}.
load_work()
run_work()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do
  local c = record(key)
  found[i] = c[KIND] ~= 0 and c[INPUTS] ~= '' and {c[ROUND], c[INPUTS]} or {}
end
local ver, more = finish()
return {ver, more, found}
