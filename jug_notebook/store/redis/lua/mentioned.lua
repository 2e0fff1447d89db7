-- after: records scheduler reuse
-- Blobs named by outcomes that don't hold now but may hold again, about a thousand tasks at a time.
-- ARGV: cursor, "0" at first; keys of tasks to leave out, packed.
-- Returns {version, more, next cursor ("0" at the end), addresses}.
load_work()
run_work()
local left_out, found, seen = {}, {}, {}
for _, key in ipairs(unpacked(ARGV[2])) do left_out[key] = true end
local address = '\217%((' .. string.rep('[0-9a-f]', 40) .. ')'
local scanned = call('HSCAN', P .. 't', ARGV[1], 'COUNT', STEP)
for i = 1, #scanned[2], 2 do
  local key = scanned[2][i]
  local c = not left_out[key] and (records[key] or read(scanned[2][i + 1]))
  for _, o in ipairs(c and outcomes(c) or {}) do
    local holds = c[REUSED_FROM] == '' and c[CURRENT] == o[O_NUMBER]
    local body = not holds and call('HGET', P .. 'o', outcome_name(key, o[O_NUMBER]))
    for each in (body or ''):gmatch(address) do
      if not seen[each] then
        seen[each] = true
        found[#found + 1] = each
      end
    end
  end
end
return finish(scanned[1], found)
