-- after: records scheduler reuse
-- The sealed acceptances that hold for tasks as they are now. ARGV: keys, packed.
-- Returns {version, more, {acceptance} per key, or {} for none}.
load_work()
run_work()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do found[i] = valid_acceptance(key, record(key)) and {call('HGET', P .. 'y', key)} or {} end
local ver, more = finish()
return {ver, more, found}
