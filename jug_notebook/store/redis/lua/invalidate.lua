-- after: records scheduler reuse
-- Makes outcomes count for nothing.
-- ARGV: {why, user, at}; keys; then {key, round}, inputs of each that was answered before.
-- Answers version, more to follow, an unknown key (then nothing was done), and what was lost as {key, round, inputs, 1 if
-- it was asked for}.
take_up()
flow()
local told, rows = unpacked(ARGV[1]), unpacked(ARGV[2])
local why = told[1]
for _, row in ipairs(rows) do
  if card(row)[KIND] == 0 then
    local ver, more = finish()
    return {ver, more, row, {}}
  end
end
local lost = {}
for i = 3, #ARGV, 2 do
  local row = unpacked(ARGV[i])
  lost[#lost + 1] = {row[1], row[2], ARGV[i + 1], 1}
end
for _, key in ipairs(rows) do
  local c = card(key)
  local whose, number = held(key)
  local has, any = whose and outcome_of(whose, number), c[WHOSE] ~= ''
  if not (why == 'retry' and (not has or has[O_DIGEST] ~= '')) then
    for _, o in ipairs(outcomes(c)) do any = any or o[O_ROUND] == c[ROUND] end
    if any then
      local taken = c[WHOSE] ~= '' and has
      lost[#lost + 1] = {key, c[ROUND], taken and taken[O_INPUTS] or '', 1}
      if taken and why == 'value lost' then lost[#lost + 1] = {whose, taken[O_ROUND], '', 0} end
    end
  end
end
for _, row in ipairs(lost) do invalidate(row[1], row[2], why, row[3], told[3], told[2]) end
flow()
local ver, more = finish()
return {ver, more, '', lost}
