-- after: records scheduler reuse
-- Gives back claims that were not started. ARGV: {key, round, attempt}, inputs of each. Answers version, more to follow.
take_up()
for i = 1, #ARGV, 2 do
  local grant = unpacked(ARGV[i])
  local key = grant[1]
  for _, a in ipairs(attempts(card(key))) do
    if a[A_ATTEMPT] == grant[3] and a[A_ROUND] == grant[2] and a[A_INPUTS] == ARGV[i + 1] and a[A_OVER] == 0 then
      a[A_OVER] = 1
      later('ZREM', 'h:' .. a[A_WORKER], key)
      alter(key)
      visit_later(key)
    end
  end
end
flow()
local ver, more = finish()
return {ver, more}
