-- after: records scheduler reuse
-- Give back claims that were not started. ARGV: {key, round, attempt}, inputs of each. Returns {version, more}.
load_work()
for i = 1, #ARGV, 2 do
  local lease = unpacked(ARGV[i])
  local key = lease[1]
  for _, a in ipairs(attempts(record(key))) do
    if a[A_ATTEMPT] == lease[3] and a[A_ROUND] == lease[2] and a[A_INPUTS] == ARGV[i + 1] and a[A_OVER] == 0 then
      a[A_OVER] = 1
      defer('ZREM', 'h:' .. a[A_WORKER], key)
      mark(key)
      queue_visit(key)
    end
  end
end
run_work()
return finish()
