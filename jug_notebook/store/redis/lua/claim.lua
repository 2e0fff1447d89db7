-- after: records scheduler reuse leases
-- Settle, then claim, in one step. A worker that gets nothing and would wait is marked idle, and is woken later.
-- ARGV: {worker, limit, would wait, target's label, python, id of this call, blobs to keep, has waited,
-- the store's id, left out where an earlier call is repeated};
-- then per outcome key, packed numbers of its verdict (see settle), inputs, digest, verdict, sealed outcome.
-- Returns {version, more, seconds until a task may be retried or -1, {function number, name, …}, bodies,
-- claims {key, round, inputs, attempt, function, failures, deaths, body, {{body, proof, …} per need}}}.
local BUDGET = 0.02
local LONGEST = 60  -- at most this many seconds between two attempts, even if a worker's clock is ahead
load_work()
local args = unpacked(ARGV[1])
local id = call('GET', P .. 'id')
if args[9] and id ~= args[9] then return redis.error_reply('GONE ' .. (id or '')) end
local worker, limit, waits, label, python, this = args[1], args[2], args[3], args[4], args[5], args[6]

local settlements, latest = 0, 0

-- Was this outcome settled before, and has it been retired since?
local function is_retired(key, c, whole)
  for number = 1, c[NEXT] - 1 do
    if call('HGET', P .. 'o', outcome_name(key, number)) == whole then return true end
  end
  return false
end

local function settle(key, numbers, inputs, digest, raw, body)
  local round, attempt, started, duration, final, died, retry = struct.unpack('>I4I4ddBBd', numbers)
  local c = record(key)
  if attempt > 1 and c[REUSED_FROM] == '' then
    local own = c[INPUTS] ~= '' and best_outcome(c)
    if own and own[O_DIGEST] ~= '' and own[O_INPUTS] == inputs then
      return  -- the previous worker was alive after all and settled first: one value is enough
    end
  end
  for _, o in ipairs(outcomes(c)) do
    if o[O_ROUND] == round and o[O_INPUTS] == inputs and o[O_ATTEMPT] == attempt and o[O_DIGEST] == digest
      and o[O_STARTED] == started and o[O_DURATION] == duration and o[O_FINAL] == final and o[O_DIED] == died
      and o[O_RETRY] == retry and o[O_WORKER] == worker then
      return
    end
  end
  for i, a in ipairs(attempts(c)) do
    if a[A_ATTEMPT] == attempt and a[A_ROUND] == round and a[A_INPUTS] == inputs then
      defer('ZREM', 'h:' .. a[A_WORKER], key)
      table.remove(c[ATTEMPTS], i)
      mark(key)
      break
    end
  end
  changed = true
  latest = math.max(latest, started + duration)
  local late = round < c[ROUND] and (digest == '' or inputs == NO_INPUTS)
  local whole, number = string.char(math.floor(#raw / 256), #raw % 256) .. raw .. body, c[NEXT]
  if late and is_retired(key, c, whole) then return end
  defer('HSET', 'o', outcome_name(key, number), whole)
  c[NEXT] = number + 1
  add_ended(key, c, number, started + duration)
  mark(key)
  if late or final == 0 then retire(key, number) end
  if late then return end
  settlements = settlements + 1
  if c[QUEUED] ~= 0 then dequeue(key, c) end
  local o = {round, attempt, started, duration, final, died, retry, number, inputs, digest, worker}
  local counts = digest ~= '' and c[KIND] ~= 0
  local was = counts and inputs ~= NO_INPUTS and run_before(key, c, inputs)
  table.insert(outcomes(c), o)
  if counts then
    add_run(c[KIND], duration)
    if inputs ~= NO_INPUTS then add_reusable_run(key, c, o, was) end
  end
  visit_acceptors(key)
  new_round(key, c, round)
end

if #ARGV > 1 then
  local keys = {}
  for i = 2, #ARGV, 6 do keys[#keys + 1] = ARGV[i] end
  prefetch(keys)
  for i = 2, #ARGV, 6 do settle(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]) end
  if settlements > 0 then call('HINCRBY', P .. 'done', worker, settlements) end
  if latest > tonumber(call('HGET', P .. 'ran', worker) or 0) then
    call('HSET', P .. 'ran', worker, format('%.17g', latest))
  end
  keep_blobs(args[7])
end
run_work()

local claims, named, given_names = {}, {}, {}
local names = {}

-- Numbers of the bodies that show each need's value; false where one has no value at the moment.
local function bodies_of_needs(key, c)
  local numbers, digests = {}, {}
  if c[COUNT] == 0 then return numbers end
  local of = needs(key)
  if #of > 1 then prefetch(of) end
  for i, need in ipairs(of) do
    digests[i] = record(need)[DIGEST]
    if digests[i] == '' then return false end
  end
  if began_with_work and redis.sha1hex(table.concat(digests)) ~= c[INPUTS] then return false end
  for i, need in ipairs(of) do
    local owner, number = current_outcome(need)
    if not owner then return false end
    numbers[i] = bodies_of(need, owner, number)
  end
  return numbers
end

local function give(key, c, attempt)
  local needed = bodies_of_needs(key, c)
  if not needed then return false end
  local failures, deaths = 0, 0
  for _, o in ipairs(outcomes(c)) do
    if o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then
      attempt = math.max(attempt, o[O_ATTEMPT] + 1)
      if o[O_DIED] == 1 then deaths = deaths + 1 else failures = failures + 1 end
    end
  end
  if not names[c[KIND]] then
    names[c[KIND]] = true
    named[#named + 1] = c[KIND]
    named[#named + 1] = kind_of(c[KIND])[1]
  end
  claims[#claims + 1] = {
    key, c[ROUND], c[INPUTS], attempt, c[KIND], failures, deaths, body_of('s', key), needed
  }
  return attempt
end

local function take(key, c)
  local top = 0
  for _, a in ipairs(attempts(c)) do
    if a[A_ROUND] == c[ROUND] and a[A_INPUTS] == c[INPUTS] then top = math.max(top, a[A_ATTEMPT]) end
  end
  c[QUEUED] = 0
  mark(key)
  local attempt = give(key, c, top + 1)
  if not attempt then  -- a need has just changed, and the change has not reached this task yet
    for _, need in ipairs(needs(key)) do update_need(key, need) end
    queue_visit(key)
    return false
  end
  table.insert(attempts(c), {c[ROUND], attempt, 0, c[INPUTS], worker})
  c[STATE], c[CURRENT] = RUNNING, 0
  tally_as(c, RUNNING)
  defer('ZADD', 'h:' .. worker, number_of_task(c), key)
  given_names[#given_names + 1] = key
  return true
end

local function queue_heads()
  local found = {}
  for _, row in ipairs(call('SMEMBERS', P .. 'queues')) do
    local first = call('ZRANGE', P .. 'q:' .. row, 0, 0, 'WITHSCORES')
    if #first == 0 then
      call('SREM', P .. 'queues', row)
    elseif fits(row, python, label) then
      local number = tonumber(row:match('%d+'))
      found[#found + 1] = {-kind_of(number)[2], tonumber(first[2]), row, number}
    end
  end
  table.sort(found, function(a, b) return row_before({a[1], a[2]}, {b[1], b[2]}) end)
  return found
end

local function claim()
  for _, span in ipairs({{'-inf', format('%.17g', now)}, {format('(%.17g', now + LONGEST), '+inf'}}) do
    for _, key in ipairs(call('ZRANGEBYSCORE', P .. 'delayed', span[1], span[2], 'LIMIT', 0, STEP)) do
      call('ZREM', P .. 'delayed', key)
      into_queue(key, record(key))
    end
  end
  fill_queues()
  local rows, budget, looked, given = queue_heads(), BUDGET, 0, {}
  while #rows > 0 and #claims < limit and looked < STEP do
    local best, second = rows[1], rows[2]
    local known = stat(best[4])
    local mean = known[1] > 0 and known[2] / known[1] or false
    local had = given[best[4]] or 0
    -- a few short runs don't promise that many will be short
    if #claims > 0 and (not mean or mean > budget or had >= known[1]) then return end
    local size = math.min(limit - #claims, math.max(1, known[1] - had))
    if mean and mean > 0 then size = math.max(1, math.min(size, math.floor(budget / mean))) end
    local queue, keys = P .. 'q:' .. best[3], {}
    local alone = not second or second[1] ~= best[1]
    if alone then
      local popped = call('ZPOPMIN', queue, size)
      for i = 1, #popped, 2 do keys[#keys + 1] = popped[i] end
    else
      keys = call('ZRANGEBYSCORE', queue, '-inf', format('(%.17g', second[2]), 'LIMIT', 0, size)
      call('ZREM', queue, unpack(keys))
    end
    prefetch(keys)
    looked = looked + #keys
    for _, key in ipairs(keys) do
      if take(key, record(key)) then
        budget, had = budget - (mean or BUDGET), had + 1
      end
    end
    given[best[4]] = had
    local first = (#keys == size or not alone) and #claims < limit and call('ZRANGE', queue, 0, 0, 'WITHSCORES') or {}
    if #first == 0 then
      table.remove(rows, 1)
    else
      best[2] = tonumber(first[2])
      table.sort(rows, function(a, b) return row_before({a[1], a[2]}, {b[1], b[2]}) end)
    end
  end
end

local retry = -1
if limit > 0 and call('ZSCORE', P .. 'left', worker) == false then
  if args[8] then
    call('HDEL', P .. 'idle', worker)
    call('DEL', P .. 'w:' .. worker)
  end
  if call('SISMEMBER', P .. 'presumed', worker) == 1 then
    revive(worker)
    run_work()
  end
  local last = call('GET', P .. 'last:' .. worker)
  last = last and unpacked(last)
  if last and last[1] == this then  -- the same call again: the reply was lost
    for _, key in ipairs(last[2]) do
      local c = record(key)
      for _, a in ipairs(attempts(c)) do
        if a[A_WORKER] == worker and a[A_OVER] == 0 and a[A_ROUND] == c[ROUND] and a[A_INPUTS] == c[INPUTS] then
          give(key, c, a[A_ATTEMPT])
        end
      end
    end
  else
    claim()
    if #claims == 0 then
      expire()
      run_work()
      claim()
    end
  end
  if #claims > 0 then
    if #given_names > 0 then
      call('SET', P .. 'last:' .. worker, pack({this, given_names}), 'EX', 3600)
      call('ZADD', P .. 'beats', 'NX', format('%.17g', now), worker)
    end
  else
    local first = call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')
    if #first > 0 then retry = math.max(0, tonumber(first[2]) - now) end
    if waits then call('HSET', P .. 'idle', worker, python .. '|' .. label) end
  end
end
run_work()
local ver, more = unpack(finish())
return {ver, more, format('%.6f', retry), named, read_bodies(), claims}
