-- after: records scheduler reuse
-- The sealed acceptances that stand for what tasks are now. ARGV: keys, packed.
-- Answers version, more to follow, {acceptance} of each; none, {}.
load_work()
run_work()
local keys, found = unpacked(ARGV[1]), {}
prefetch(keys)
for i, key in ipairs(keys) do found[i] = valid_acceptance(key, record(key)) and {call('HGET', P .. 'y', key)} or {} end
local ver, more = finish()
return {ver, more, found}
