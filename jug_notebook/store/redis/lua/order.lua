-- after: records scheduler
-- Tells supervisors to do something. ARGV: the order, packed; their names. Answers version, more to follow.
for i = 2, #ARGV do
  local name = P .. 'orders:' .. ARGV[i]
  call('RPUSH', name, call('INCR', P .. 'ordered') .. ':' .. ARGV[1])
  call('EXPIRE', name, 86400)
end
changed = true
local ver, more = finish()
return {ver, more}
