-- What follows from a change, and the ready queue; the rules of scheduler/state.py. Comes after records.lua.

-- -- the ready queue --------------------------------------------------------------------------------------------------

local ready_rows = {}  -- "kind:group" -> number of tasks that became ready in this script

local function retry_at(c)
  local at = 0
  for _, o in ipairs(outcomes(c)) do
    if o[O_RETRY] > at and o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then at = o[O_RETRY] end
  end
  return at
end

local function into_queue(key, c)
  local row = row_of(c)
  defer('ZADD', 'q:' .. row, number_of_task(c), key)
  ready_rows[row] = (ready_rows[row] or 0) + 1
  c[QUEUED] = IN_QUEUE
  mark(key)
end

local function enqueue(key, c)
  local at = retry_at(c)
  if at > 0 then
    call('ZADD', P .. 'delayed', format('%.17g', at), key)
    c[QUEUED] = DELAYED
    mark(key)
  else
    into_queue(key, c)
  end
end

-- Write queued entries, so that the queues can be read.
local function fill_queues()
  for row in pairs(ready_rows) do defer('SADD', 'queues', row) end
  run_deferred('ZADD')
  run_deferred('SADD')
end

local function dequeue(key, c)
  if c[QUEUED] == IN_QUEUE then
    local row = row_of(c)
    fill_queues()
    call('ZREM', P .. 'q:' .. row, key)
    if (ready_rows[row] or 0) > 0 then ready_rows[row] = ready_rows[row] - 1 end
  elseif c[QUEUED] == DELAYED then
    call('ZREM', P .. 'delayed', key)
  end
  c[QUEUED] = 0
  mark(key)
end

-- -- pending work -----------------------------------------------------------------------------------------------------
-- An item of work is a key, to be visited; {"g", key, group}, to add the task to a group; or {"z", name, from,
-- action, argument}, to do an action for each member of a sorted set, after a given score.

local work, head, tail, waiting_visits = {}, 1, 0, {}
local left = STEP  -- records that this script may still touch
local began_with_work = false

local function push(item)
  tail = tail + 1
  work[tail] = item
end

local function queue_visit(key)
  if not waiting_visits[key] then
    waiting_visits[key] = true
    push(key)
  end
end

local function queue_walk(name, action, argument)
  push({'z', name, -1, action, argument or ''})
end

-- Load the work that earlier scripts left.
local function load_work()
  local items = call('LRANGE', P .. 'work', 0, STEP - 1)
  if #items > 0 then
    began_with_work = true
    call('LTRIM', P .. 'work', #items, -1)
    for _, raw in ipairs(items) do
      local item = unpacked(raw)
      if type(item) == 'string' then queue_visit(item) else push(item) end
    end
  end
end

-- -- states -----------------------------------------------------------------------------------------------------------

-- The digest of its needs' values together; '' where one has no value.
local function inputs_of(key, c)
  if c[MISSING] > 0 then return '' end
  if c[COUNT] == 0 then return NO_INPUTS end
  local of = needs(key)
  local digests = {}
  if #of > 1 then prefetch(of) end
  for i, need in ipairs(of) do digests[i] = record(need)[DIGEST] end
  return redis.sha1hex(table.concat(digests))
end

local lost_workers = {}

-- Has a worker ended, or sent no heartbeat for the length of a lease?
local function is_lost(worker)
  local known = lost_workers[worker]
  if known == nil then
    known = call('SISMEMBER', P .. 'presumed', worker) == 1 or call('ZSCORE', P .. 'left', worker) ~= false
    lost_workers[worker] = known
  end
  return known
end

local function runner(c)
  local latest
  for _, a in ipairs(attempts(c)) do
    if a[A_ROUND] == c[ROUND] and a[A_INPUTS] == c[INPUTS] and (not latest or a[A_ATTEMPT] > latest[A_ATTEMPT]) then
      latest = a
    end
  end
  if not latest or latest[A_OVER] == 1 or is_lost(latest[A_WORKER]) then return '' end
  for _, o in ipairs(outcomes(c)) do
    if o[O_ATTEMPT] > latest[A_ATTEMPT] and o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then return '' end
  end
  return latest[A_WORKER]
end

-- Is one text less than another, byte by byte?
local function before(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = one:byte(i), other:byte(i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- Is one row of numbers and texts less than another of the same shape?
local function row_before(one, other)
  for i, a in ipairs(one) do
    local b = other[i]
    if a ~= b then
      if type(a) == 'string' then return before(a, b) end
      return a < b
    end
  end
  return false
end

-- Its own final outcome for the present round and inputs: finished before failed, then the later attempt.
local function best_outcome(c)
  local best
  for _, o in ipairs(outcomes(c)) do
    if o[O_FINAL] == 1 and o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then
      if not best then
        best = o
      else
        local has, had = o[O_DIGEST] ~= '', best[O_DIGEST] ~= ''
        if has ~= had then
          if has then best = o end
        elseif row_before(
          {best[O_ATTEMPT], best[O_DIGEST], best[O_WORKER]}, {o[O_ATTEMPT], o[O_DIGEST], o[O_WORKER]}
        ) then
          best = o
        end
      end
    end
  end
  return best
end

local origins = {}

local function origin_of(number)
  local origin = origins[number]
  if not origin then
    origin = unpacked(call('LINDEX', P .. 'origins', number - 1))
    origins[number] = origin
  end
  return origin
end

-- Withdrawing without naming a cell overrides requests from all cells of the notebook.
local function overrides(request, number)
  if request[R_WANTED] == 1 then return false end
  local by, origin = origin_of(request[R_ORIGIN]), origin_of(number)
  return by[3] == '' and by[2] == origin[2] and by[1] == origin[1]
end

-- Is it requested by anyone; or, with a number, by that origin?
local function is_requested(c, number)
  local list = requests(c)
  if not number and #list < 2 then return #list == 1 and list[1][R_WANTED] == 1 end
  for _, request in ipairs(list) do
    if request[R_WANTED] == 1 and (not number or request[R_ORIGIN] == number) then
      local overridden = false
      for _, other in ipairs(list) do
        overridden = overridden or (other[R_COUNTER] > request[R_COUNTER] and overrides(other, request[R_ORIGIN]))
      end
      if not overridden then return true end
    end
  end
  return false
end

local reusable_run  -- see reuse.lua

-- State, digest of the value, number of the current outcome (or 0), and the task it is reused from (or '').
local function derive(key, c)
  local has = 0
  if c[INPUTS] ~= '' then
    local current_outcome = (c[OUTCOMES] or c[OUTCOMES + RAW] ~= '') and best_outcome(c)
    if current_outcome then has = current_outcome[O_NUMBER] end
    if current_outcome and current_outcome[O_DIGEST] ~= '' then return FINISHED, current_outcome[O_DIGEST], has, '' end
    if not current_outcome and (c[ATTEMPTS] or c[ATTEMPTS + RAW] ~= '') and runner(c) ~= '' then return RUNNING, '', 0, '' end
    if c[COUNT] > 0 or is_flagged('accepts') then
      local reused = reusable_run(key, c)
      if reused then return FINISHED, reused[3], reused[2], reused[1] end
    end
    if current_outcome and c[WANTED] == 1 then return FAILED, '', has, '' end
  end
  if c[WANTED] == 0 then return CANCELLED, '', has, '' end
  if c[BLOCKING] > 0 then return BLOCKED, '', has, '' end
  return c[INPUTS] ~= '' and READY or WAITING, '', has, ''
end

local function is_stuck(state) return state == FAILED or state == BLOCKED end

local function visit(key)
  local c = record(key)
  local wanted = (c[REQUESTED] == 1 or c[WANTERS] > 0) and 1 or 0
  if wanted ~= c[WANTED] then
    c[WANTED] = wanted
    mark(key)
    if c[COUNT] > 0 then
      local of = needs(key)
      if #of > 1 then prefetch(of) end
      for _, need in ipairs(of) do
        local n = record(need)
        n[WANTERS] = n[WANTERS] + (wanted == 1 and 1 or -1)
        mark(need)
        if (n[WANTERS] > 0) ~= (n[WANTED] == 1) then queue_visit(need) end
      end
    end
  end
  if c[KIND] == 0 then return end
  local state, digest, has, owner = derive(key, c)
  local was = c[STATE]
  if has ~= c[CURRENT] or owner ~= c[REUSED_FROM] then
    c[CURRENT], c[REUSED_FROM] = has, owner
    mark(key)
  end
  if digest ~= c[DIGEST] or state ~= was then
    if c[NEEDED] == 1 and (digest ~= c[DIGEST] or is_stuck(state) ~= is_stuck(was)) then queue_walk('d:' .. key, 'e', key) end
    c[DIGEST], c[STATE] = digest, state
    mark(key)
    if was == FAILED then call('ZREM', P .. 'failed', key) end
    if state == FAILED then
      local current_outcome = best_outcome(c)
      call('ZADD', P .. 'failed', format('%.17g', current_outcome[O_STARTED] + current_outcome[O_DURATION]), key)
    end
  end
  if state == READY then
    if c[QUEUED] == 0 then enqueue(key, c) end
  elseif c[QUEUED] ~= 0 then
    dequeue(key, c)
  end
  local counted_as = state
  if state == FINISHED and (wanted == 0 or owner ~= '') then counted_as = wanted == 1 and REUSED or CANCELLED end
  if counted_as ~= c[TALLIED] then
    tally_as(c, counted_as)
    mark(key)
  end
end

-- Update what a task knows about one of its needs.
local function update_need(key, need)
  local c, n = record(key), record(need)
  if c[KIND] == 0 then return end
  local was_blocked = c[BLOCKING] > 0
  if n[DIGEST] == '' then
    c[MISSING] = c[MISSING] + call('SADD', P .. 'm:' .. key, need)
  elseif c[MISSING] > 0 then
    c[MISSING] = c[MISSING] - call('SREM', P .. 'm:' .. key, need)
  end
  if is_stuck(n[STATE]) then
    c[BLOCKING] = c[BLOCKING] + call('SADD', P .. 'b:' .. key, need)
  elseif was_blocked then
    c[BLOCKING] = c[BLOCKING] - call('SREM', P .. 'b:' .. key, need)
  end
  mark(key)
  local inputs = inputs_of(key, c)
  if inputs ~= c[INPUTS] or was_blocked ~= (c[BLOCKING] > 0) then
    if c[QUEUED] == DELAYED or inputs ~= c[INPUTS] then dequeue(key, c) end
    c[INPUTS] = inputs
    queue_visit(key)
  end
end

-- Tasks belong to each notebook that ever requested them, and to targets; so do the tasks they need.
local function add_group(key, group)
  local c = record(key)
  local now_in = joined_group(c[GROUP], group)
  if now_in == c[GROUP] then return end
  local queued, counted_as = c[QUEUED], c[TALLIED]
  if queued == IN_QUEUE then dequeue(key, c) end
  tally_as(c, -1)
  c[GROUP] = now_in
  tally_as(c, counted_as)
  if queued == IN_QUEUE then into_queue(key, c) end
  mark(key)
  if c[COUNT] > 0 then
    for _, need in ipairs(needs(key)) do push({'g', need, now_in}) end
  end
end

-- A worker's attempts at the task are void for good.
local function void_attempts(key, worker)
  for _, a in ipairs(attempts(record(key))) do
    if a[A_WORKER] == worker then a[A_OVER] = 1 end
  end
  mark(key)
  defer('ZREM', 'h:' .. worker, key)
  queue_visit(key)
end

local function walk(item)
  local name, from, action, argument = item[2], item[3], item[4], item[5]
  local size = math.max(1, left)
  local rows = call(
    'ZRANGEBYSCORE', P .. name, format('(%.17g', from), '+inf', 'WITHSCORES', 'LIMIT', 0, size
  )
  local members = {}
  for i = 1, #rows, 2 do members[#members + 1] = rows[i] end
  prefetch(members)
  for _, key in ipairs(members) do
    if action == 'e' then
      update_need(key, argument)
    elseif action == 'v' then
      queue_visit(key)
    elseif action == 'g' then
      push({'g', key, argument})
    else
      void_attempts(key, argument)
    end
  end
  left = left - #members
  if #members == size then
    push({'z', name, tonumber(rows[#rows]), action, argument})
  end
end

-- Do pending work, as far as this script may go.
local function run_work()
  while head <= tail and left > 0 do
    local item = work[head]
    work[head] = nil
    head = head + 1
    if type(item) == 'string' then
      left = left - 1
      waiting_visits[item] = nil
      visit(item)
    elseif item[1] == 'z' then
      walk(item)
    else
      left = left - 1
      add_group(item[2], item[3])
    end
  end
end

-- -- attempts that ended ----------------------------------------------------------------------------------------------

local PAST = 33554432  -- bytes of retired outcomes to keep; the oldest are removed
local retired = {}  -- names of outcomes that this script retired

-- The field under which the body of an outcome is stored.
local function outcome_name(key, number) return number == 1 and key or key .. ':' .. number end

local function add_ended(key, c, number, at)
  defer('ZADD', 'ended', format('%.17g', at), outcome_name(key, number))
  c[ENDED] = c[ENDED] + 1
  if c[TALLIED] >= 0 then count(c, RUNS, 1) end
end

local function retire(key, number) retired[#retired + 1] = outcome_name(key, number) end

-- Remove a retired outcome.
local function drop_run(name)
  local key, number = name:match('^[^:]*'), tonumber(name:match(':(%d+)$') or 1)
  local c = record(key)
  for _, o in ipairs(outcomes(c)) do
    if o[O_NUMBER] == number and o[O_FINAL] == 1 then return end
  end
  call('HDEL', P .. 'o', name)
  if call('ZREM', P .. 'ended', name) == 1 then
    c[ENDED] = c[ENDED] - 1
    if c[TALLIED] >= 0 then count(c, RUNS, -1) end
    mark(key)
  end
end

local function store_retired()
  run_deferred('HSET')
  local size = 0
  for _, name in ipairs(retired) do
    if call('ZADD', P .. 'past', format('%.17g', now), name) == 1 then size = size + call('HSTRLEN', P .. 'o', name) end
  end
  size = call('INCRBY', P .. 'pastsize', size)
  while size > PAST do
    local oldest = call('ZPOPMIN', P .. 'past')
    if #oldest == 0 then return call('DEL', P .. 'pastsize') end
    size = call('DECRBY', P .. 'pastsize', call('HSTRLEN', P .. 'o', oldest[1]))
    drop_run(oldest[1])
  end
end

-- What is written now may name these blobs: they no longer expire and count as used now, even if swept meanwhile.
local function keep_blobs(names)
  for _, name in ipairs(names) do
    call('PERSIST', P .. name)
    local address = name:match('^v:(.*)')
    if address and call('EXISTS', P .. name) == 1 then
      defer('ZADD', 'blobs', format('%.17g', now), address)
      defer('ZREM', 'bin', address)
    end
  end
end

-- -- at the end -------------------------------------------------------------------------------------------------------

local function wake(waiter)
  call('LPUSH', P .. 'w:' .. waiter, 1)
  call('PEXPIRE', P .. 'w:' .. waiter, 60000)
end

local function fits(row, python, label)
  local kind, group = row:match('(%d+):(%d+)')
  return (python == '' or kind_of(tonumber(kind))[3] == python) and (label == '' or has_label(tonumber(group), label))
end

-- Wake one idle worker for each task that became ready and was not claimed at once.
local function wake_workers()
  local total = 0
  if next(ready_rows) == nil or call('EXISTS', P .. 'idle') == 0 then return end
  for row, became in pairs(ready_rows) do
    ready_rows[row] = math.min(became, call('ZCARD', P .. 'q:' .. row))
    total = total + ready_rows[row]
  end
  if total == 0 then return end
  local function wake_some(idle)
    for i = 1, #idle, 2 do
      local python, label = idle[i + 1]:match('(.-)|(.*)')
      for row, became in pairs(ready_rows) do
        if became > 0 and fits(row, python, label) then
          ready_rows[row] = became - 1
          total = total - 1
          call('HDEL', P .. 'idle', idle[i])
          wake(idle[i])
          break
        end
      end
      if total == 0 then return true end
    end
    return false
  end
  if not wake_some(call('HRANDFIELD', P .. 'idle', math.min(total, 64), 'WITHVALUES')) then
    wake_some(call('HGETALL', P .. 'idle'))
  end
end

-- Write all changes. Returns {the store's version, 1 if pending work remains, and then what it is given}.
local function finish(...)
  fill_queues()
  if #retired > 0 then store_retired() end
  run_deferred('ZREM')
  run_deferred('SREM')
  for _, key in ipairs(marked_keys) do
    if erased[key] and not is_mentioned(records[key]) then
      call('HDEL', P .. 't', key)
    else
      defer('HSET', 't', key, encode(records[key]))
    end
  end
  run_deferred('HSET')
  for row, by_state in pairs(tallies) do
    for state, by in pairs(by_state) do
      if by ~= 0 then call('HINCRBY', P .. 'tallies', row .. ':' .. state, by) end
    end
  end
  for kind, known in pairs(stats) do
    if known[3] then
      call('HSET', P .. 'stats', kind .. ':done', known[1], kind .. ':spent', format('%.17g', known[2]))
    end
  end
  for i = head, tail do
    if work[i] then call('RPUSH', P .. 'work', pack(work[i])) end
  end
  local ver
  if changed or #marked_keys > 0 then
    ver = call('INCR', P .. 'ver')
    wake_workers()
    local watchers = call('SMEMBERS', P .. 'watchers')
    for _, watcher in ipairs(watchers) do wake(watcher) end
    if #watchers > 0 then call('DEL', P .. 'watchers') end
  else
    ver = tonumber(call('GET', P .. 'ver') or 0)
  end
  return {ver, (head <= tail or (began_with_work and call('EXISTS', P .. 'work') == 1)) and 1 or 0, ...}
end
