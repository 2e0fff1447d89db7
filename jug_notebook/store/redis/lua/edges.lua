-- after: records scheduler reuse
-- What tasks of a function need, after a given task number, a thousand tasks at a time. ARGV: {function, from, label}.
-- Returns {version, more, {needed function, number of the first task that needs it, count} each, next from or -1}.
load_work()
run_work()
local args = unpacked(ARGV[1])
local rows = call('ZRANGEBYSCORE', P .. 'kind:' .. args[1], format('(%.17g', args[2]), '+inf', 'WITHSCORES', 'LIMIT', 0, STEP)
local keys, counts, firsts, order = {}, {}, {}, {}
for i = 1, #rows, 2 do keys[#keys + 1] = rows[i] end
prefetch(keys)
for _, key in ipairs(keys) do
  local c = record(key)
  if c[COUNT] > 0 and c[TALLIED] ~= CANCELLED and (args[3] == '' or has_label(c[GROUP], args[3])) then
    local of = needs(key)
    prefetch(of)
    for _, need in ipairs(of) do
      local kind = record(need)[KIND]
      if kind ~= 0 then
        if not counts[kind] then
          counts[kind], firsts[kind] = 0, c[SEQ]
          order[#order + 1] = kind
        end
        counts[kind] = counts[kind] + 1
      end
    end
  end
end
local found = {}
for _, kind in ipairs(order) do found[#found + 1] = {kind, firsts[kind], counts[kind]} end
return finish(found, #keys == STEP and tonumber(rows[#rows]) or -1)
