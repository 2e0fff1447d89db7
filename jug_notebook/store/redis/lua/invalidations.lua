-- after: records scheduler reuse
-- Who began the current rounds of tasks. ARGV: keys, packed.
-- Returns {version, more, {from round, at, user, why} or {} each}.
load_work()
run_work()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do
  local raw = call('HGET', P .. 'i', key)
  local info = raw and unpacked(raw)
  found[i] = info and info[1] + 1 == record(key)[ROUND] and {info[1], format('%.17g', info[2]), info[3], info[4]} or {}
end
local ver, more = finish()
return {ver, more, found}
