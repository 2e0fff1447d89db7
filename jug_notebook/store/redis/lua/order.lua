-- after: records scheduler
-- Give supervisors an order. ARGV: the order, packed; their names. Returns {version, more}.
for i = 2, #ARGV do
  local name = P .. 'orders:' .. ARGV[i]
  call('RPUSH', name, call('INCR', P .. 'ordered') .. ':' .. ARGV[1])
  call('EXPIRE', name, 86400)
end
changed = true
return finish()
