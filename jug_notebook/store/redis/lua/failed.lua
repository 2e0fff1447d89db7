-- after: records scheduler reuse
-- Keys of failed tasks, the latest first. ARGV: {label, how many before, how many}.
-- Answers version, more to follow, keys, and 1 where there are more.
take_up()
flow()
local told = unpacked(ARGV[1])
local keys = call('ZREVRANGE', P .. 'failed', told[2], told[2] + told[3] - 1)
prefetch(keys)
local found = {}
for _, key in ipairs(keys) do
  if told[1] == '' or has_label(card(key)[GROUP], told[1]) then found[#found + 1] = key end
end
local ver, more = finish()
return {ver, more, found, #keys == told[3] and 1 or 0}
