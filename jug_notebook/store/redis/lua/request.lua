-- after: records scheduler reuse requests
-- Somebody wants known tasks, or no longer does.
-- ARGV: {origin, counter or 0, wanted}; keys. Answers version, more to follow, the counter.
take_up()
local told, keys = unpacked(ARGV[1]), unpacked(ARGV[2])
prefetch(keys)
local counter = wish(keys, told[1], told[2], told[3])
flow()
local ver, more = finish()
return {ver, more, counter}
