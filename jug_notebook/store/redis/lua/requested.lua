-- after: records scheduler reuse
-- What an origin requests now. ARGV: the origin, packed. Returns {version, more, keys in order of submission}.
load_work()
run_work()
local number = tonumber(call('HGET', P .. 'originnames', pack(unpacked(ARGV[1]))) or 0)
local found = {}
if number > 0 then
  local keys = call('SMEMBERS', P .. 'wo:' .. number)
  prefetch(keys)
  for _, key in ipairs(keys) do
    if is_requested(record(key), number) then found[#found + 1] = key end
  end
  table.sort(found, function(a, b) return record(a)[SEQ] < record(b)[SEQ] end)
end
return finish(found)
