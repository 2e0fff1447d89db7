-- after: records scheduler reuse
-- Keys of failed tasks, latest first. ARGV: {label, offset, limit}.
-- Returns {version, more, keys, 1 if there may be further ones}.
load_work()
run_work()
local args = unpacked(ARGV[1])
local keys = call('ZREVRANGE', P .. 'failed', args[2], args[2] + args[3] - 1)
prefetch(keys)
local found = {}
for _, key in ipairs(keys) do
  if args[1] == '' or has_label(record(key)[GROUP], args[1]) then found[#found + 1] = key end
end
return finish(found, #keys == args[3] and 1 or 0)
