-- Processes that have sent no heartbeat for the length of a lease, by the server's clock. Comes after scheduler.lua.

local LEASE = 30
local AWAY = 5   -- seconds without any heartbeat: then the server itself was down, and all processes may be alive
local GRACE = 3  -- seconds that they then have to send one

-- Presume processes dead that have been silent for too long; others may take what they hold.
local function expire()
  local last = tonumber(call('GET', P .. 'tick') or 0)
  call('SET', P .. 'tick', format('%.17g', now))
  if now - last > AWAY then
    call('SET', P .. 'grace', 1, 'EX', GRACE)
    return
  end
  local silent = call('ZRANGEBYSCORE', P .. 'beats', '-inf', format('%.17g', now - LEASE), 'WITHSCORES', 'LIMIT', 0, 20)
  if #silent == 0 or call('EXISTS', P .. 'grace') == 1 then return end
  for i = 1, #silent, 2 do
    local process = silent[i]
    call('ZREM', P .. 'beats', process)
    call('ZADD', P .. 'late', silent[i + 1], process)
    call('SADD', P .. 'presumed', process)
    lost_workers[process] = true
    queue_walk('h:' .. process, 'v')
  end
end

-- The process is alive. What it held is its own again, unless others have taken it.
local function revive(process)
  call('ZADD', P .. 'beats', format('%.17g', now), process)
  if call('SREM', P .. 'presumed', process) == 1 then
    call('ZREM', P .. 'late', process)
    lost_workers[process] = nil
    queue_walk('h:' .. process, 'v')
  end
end
