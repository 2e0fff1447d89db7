-- after: records scheduler reuse leases
-- Heartbeats of processes; the first receives its orders.
-- ARGV: number of the last order that the first received; then name and packed `WorkerInfo` of each.
-- Returns {version, more, {number, order} per new order}.
local LISTED, KEPT = 60, 86400  -- seconds for which a process that left is listed, and is known to have left
load_work()
local infos = {}
for i = 2, #ARGV, 2 do
  if not call('ZSCORE', P .. 'left', ARGV[i]) then
    infos[#infos + 1] = ARGV[i]
    infos[#infos + 1] = ARGV[i + 1]
    revive(ARGV[i])
  end
end
if #infos > 0 then call('HSET', P .. 'info', unpack(infos)) end
expire()
for _, set in ipairs({'left', 'late'}) do
  local before = format('(%.17g', now - (set == 'left' and LISTED or KEPT))
  for _, process in ipairs(call('ZRANGEBYSCORE', P .. set, '-inf', before, 'LIMIT', 0, 100)) do
    if call('HDEL', P .. 'info', process) == 1 then
      call('HDEL', P .. 'done', process)
      call('HDEL', P .. 'ran', process)
      call('DEL', P .. 'last:' .. process, P .. 'orders:' .. process)
    end
    if set == 'late' then
      call('ZREM', P .. 'late', process)
      call('ZADD', P .. 'left', format('%.17g', now), process)
      queue_walk('h:' .. process, 'o', process)
    end
  end
end
call('ZREMRANGEBYSCORE', P .. 'left', '-inf', format('(%.17g', now - KEPT))
local orders = {}
if #ARGV > 1 then
  local name, heard = P .. 'orders:' .. ARGV[2], tonumber(ARGV[1])
  for _, raw in ipairs(call('LRANGE', name, 0, -1)) do
    local number, order = raw:match('^(%d+):(.*)$')
    if tonumber(number) <= heard then
      call('LPOP', name)
    else
      orders[#orders + 1] = {number, order}
    end
  end
end
run_work()
return finish(orders)
