-- after: records scheduler reuse
-- Attempts that ended, latest first. ARGV: {label, offset, limit}.
-- Returns {version, more, total, bodies, {body, 1 if it counts} each, next offset
-- or -1}.
load_work()
run_work()
local args = unpacked(ARGV[1])
local label, from, limit = args[1], args[2], args[3]
local total, rows = 0, call('HGETALL', P .. 'tallies')
for i = 1, #rows, 2 do
  local group, state = rows[i]:match('%d+:(%d+):(%d+)')
  if tonumber(state) == RUNS and (label == '' or has_label(tonumber(group), label)) then
    total = total + tonumber(rows[i + 1])
  end
end
local size = label == '' and math.min(STEP, limit) or STEP
local names = call('ZREVRANGE', P .. 'ended', from, from + size - 1)
local keys, found, on = {}, {}, -1
for i, name in ipairs(names) do keys[i] = name:match('^[^:]*') end
prefetch(keys)
for i, name in ipairs(names) do
  local c = record(keys[i])
  if #found == limit then
    on = from + i - 1
    break
  end
  if c[KIND] ~= 0 and (label == '' or has_label(c[GROUP], label)) then
    local counts = c[REUSED_FROM] == '' and c[CURRENT] == tonumber(name:match(':(%d+)$') or 1)
    found[#found + 1] = {body_of('o', name), counts and 1 or 0}
  end
end
if on < 0 and #names == size then on = from + size end
local ver, more = unpack(finish())
return {ver, more, total, read_bodies(), found, on}
