-- after: records scheduler reuse requests
-- Somebody wants known tasks, or no longer does.
-- ARGV: {origin, counter or 0, wanted}; keys. Answers version, more to follow, the counter.
load_work()
local args, keys = unpacked(ARGV[1]), unpacked(ARGV[2])
prefetch(keys)
local counter = set_requested(keys, args[1], args[2], args[3])
run_work()
local ver, more = finish()
return {ver, more, counter}
