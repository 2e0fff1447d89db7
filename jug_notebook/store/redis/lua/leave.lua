-- after: records scheduler reuse
-- Processes have ended: what they hold is open to others. ARGV: their names. Answers version, more to follow.
take_up()
for _, process in ipairs(ARGV) do
  if not call('ZSCORE', P .. 'left', process) then
    call('ZADD', P .. 'left', format('%.17g', now), process)
    call('ZREM', P .. 'beats', process)
    call('ZREM', P .. 'late', process)
    call('HDEL', P .. 'idle', process)
    call('DEL', P .. 'w:' .. process)
    gone[process] = true
    walk_later('h:' .. process, 'o', process)
    news = true
  end
end
flow()
local ver, more = finish()
return {ver, more}
