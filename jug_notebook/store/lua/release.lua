-- after: board reuse
-- Gives back claims that were not started. ARGV: {key, round, attempt}, inputs of each. Answers version, more to follow.
take_up()
for i = 1, #ARGV, 2 do
  local grant = unpacked(ARGV[i])
  local key = grant[1]
  for _, a in ipairs(card(key)[ATTEMPTS]) do
    if a[3] == grant[3] and a[1] == grant[2] and a[2] == ARGV[i + 1] and not a[5] then
      a[5] = true
      later('ZREM', 'h:' .. a[4], key)
      alter(key)
      visit_later(key)
    end
  end
end
flow()
local ver, more = finish()
return {ver, more}
