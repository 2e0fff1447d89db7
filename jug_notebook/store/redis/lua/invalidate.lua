-- after: records scheduler reuse
-- Make outcomes invalid.
-- ARGV: {why, user, at}; keys; then, when repeating, {key, round}, inputs of each that was invalidated before.
-- Returns {version, more, an unknown key or '' (if unknown, nothing was done), {key, round, inputs, 1 if it was asked
-- for} per invalidated outcome}.
load_work()
run_work()
local args, rows = unpacked(ARGV[1]), unpacked(ARGV[2])
local why = args[1]
for _, row in ipairs(rows) do
  if record(row)[KIND] == 0 then
    return finish(row, {})
  end
end
local lost = {}
for i = 3, #ARGV, 2 do
  local row = unpacked(ARGV[i])
  lost[#lost + 1] = {row[1], row[2], ARGV[i + 1], 1}
end
for _, key in ipairs(rows) do
  local c = record(key)
  local owner, number = current_outcome(key)
  local has, any = owner and outcome_of(owner, number), c[REUSED_FROM] ~= ''
  if not (why == 'retry' and (not has or has[O_DIGEST] ~= '')) then
    for _, o in ipairs(outcomes(c)) do any = any or o[O_ROUND] == c[ROUND] end
    if any then
      local reused = c[REUSED_FROM] ~= '' and has
      lost[#lost + 1] = {key, c[ROUND], reused and reused[O_INPUTS] or '', 1}
      if reused and why == 'value lost' then lost[#lost + 1] = {owner, reused[O_ROUND], '', 0} end
    end
  end
end
for _, row in ipairs(lost) do invalidate(row[1], row[2], why, row[3], args[3], args[2]) end
run_work()
return finish('', lost)
