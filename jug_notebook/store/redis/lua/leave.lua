-- after: records scheduler reuse
-- Processes have ended: others may take what they hold. ARGV: their names. Returns {version, more}.
load_work()
for _, process in ipairs(ARGV) do
  if not call('ZSCORE', P .. 'left', process) then
    call('ZADD', P .. 'left', format('%.17g', now), process)
    call('ZREM', P .. 'beats', process)
    call('ZREM', P .. 'late', process)
    call('HDEL', P .. 'idle', process)
    call('DEL', P .. 'w:' .. process)
    lost_workers[process] = true
    queue_walk('h:' .. process, 'o', process)
    changed = true
  end
end
run_work()
return finish()
