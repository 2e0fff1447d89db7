-- after: records scheduler reuse requests
-- Request known tasks, or withdraw requests.
-- ARGV: {origin, counter or 0, wanted}; keys. Returns {version, more, counter}.
load_work()
local args, keys = unpacked(ARGV[1]), unpacked(ARGV[2])
prefetch(keys)
local counter = set_requested(keys, args[1], args[2], args[3])
run_work()
return finish(counter)
