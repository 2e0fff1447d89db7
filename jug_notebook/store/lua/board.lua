-- What every script begins with: the tasks' cards, and what follows from a change. The rules are those of `board.py`.
--
-- KEYS[1] stands before every key of a project, "jug:{project}:", so that a project lies in one shard:
--   id format ver counter seq   the store's name, its format; what rises with each write; wishes; tasks
--   t:KEY      a task's card, an array (below)         n:KEY  its needs, where they are many
--   s:KEY      its sealed spec                         o:KEY:N  an outcome: size of the verdict (2 bytes), verdict, body
--   d:KEY      who needs it, by number                 m:KEY b:KEY  needs without a value; needs that block it
--   i:KEY      who invalidated it                      a:KEY y:KEY l:KEY  what was accepted for it, sealed; who leans on it
--   kinds kind:K stats   functions: (name, priority, python), numbered; their tasks; how they fare
--   groups groupnames    sets of labels, numbered: notebooks ("n:PATH") and targets ("t:NAME") that a task belongs to
--   origins originnames wo:N    who wishes, numbered, and what
--   tallies              tasks by "kind:group:state"   failed  failed tasks by the time of it
--   queues q:K:G delayed ready tasks, by number; those not to be tried before a time
--   r:NAME p:NAME x:NAME by form and inputs: who ran that, who waits for such a run, who was wrong about it
--   flags                "accepts", "bars": is there any such thing?
--   work                 what is still to follow from changes: any script goes on with that, a thousand cards at a time
--   info beats late left presumed done h:W last:W   processes, and what workers hold
--   idle watchers w:W    who waits for tasks, or for news, and the list where each is woken
--   orders:W log:W  targets targetnames targetkeys  blobs sizes v:A c:A:N

-- Names in capitals stand for numbers and texts: they are replaced by these when a script is put together, for Lua takes
-- no more than 200 local names.

local P = KEYS[1]
local call, pack, unpacked, format = redis.call, cmsgpack.pack, cmsgpack.unpack, string.format

local WAITING, READY, RUNNING, FINISHED, FAILED, BLOCKED, WITHDRAWN, REUSED = 0, 1, 2, 3, 4, 5, 6, 7
local NO_INPUTS = '-'  -- of a task without needs; others have a SHA-1 in hex, or nothing while a need has no value
local STEP = 1000
local INLINE = 16  -- so many needs stand on the card

-- A card, as it is stored: numbers, then texts after their lengths. The first four places hold its lists once they were
-- read. KIND is 0 for a task that something mentions and nobody submitted yet. HELD is the number of the outcome that it
-- has, or 0, and WHOSE the task that it was taken over from.
local CARD = '>I4I5I4I4bbBBI4I4I4i4i4I4I4BBI4Bc0Bc0Bc0Bc0I4c0I4c0I4c0Hc0I4c0'
local OUTCOMES, ATTEMPTS, WISHES, NEEDS = 1, 2, 3, 4
local KIND, SEQ, COUNT, ROUND, STATE, TALLIED, WANTED, WISHED, WANTERS, MISSING = 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
local BLOCKING, DIRECT, LOST, NEXT, GROUP, QUEUED, ABOVE, HELD = 15, 16, 17, 18, 19, 20, 21, 22
local FORM, INPUTS, WORTH, WHOSE, DROPPED = 23, 24, 25, 26, 31
local RAW = 26  -- the lists' bytes come so far behind the lists

-- what its lists hold
local OUTCOME = '>I4I4ddBBdI4Bc0Bc0Bc0'
local O_ROUND, O_ATTEMPT, O_STARTED, O_DURATION, O_FINAL, O_DIED, O_RETRY, O_NUMBER = 1, 2, 3, 4, 5, 6, 7, 8
local O_INPUTS, O_DIGEST, O_WORKER = 9, 10, 11
local ATTEMPT = '>I4I4BBc0Bc0'
local A_ROUND, A_ATTEMPT, A_OVER, A_INPUTS, A_WORKER = 1, 2, 3, 4, 5
local WISH = '>I4I5B'
local W_ORIGIN, W_COUNTER, W_WANTED = 1, 2, 3

local IN_QUEUE, DELAYED = 1, 2

local now
do
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- -- cards --------------------------------------------------------------------------------------------------------------

local cards, altered, alterations = {}, {}, {}
local fresh = {}  -- keys and values to be set at the end
local news = false

local function stub()
  return {
    false, false, false, false, 0, 0, 0, 0, -1, -1, 0, 0, 0, 0, 0, -1, -1, 1, 0, 0, 0, 0, '', '', '', '', '', '', '', '', ''
  }
end

local function read(raw)
  if not raw then return stub() end
  return {false, false, false, false, struct.unpack(CARD, raw)}
end

local function card(key)
  local c = cards[key]
  if not c then
    c = read(call('GET', P .. 't:' .. key))
    cards[key] = c
  end
  return c
end

local function rows_of(raw, shape)
  local rows, at, size = {}, 1, #raw
  while at <= size do
    local row = {struct.unpack(shape, raw, at)}
    at = row[#row]
    row[#row] = nil
    rows[#rows + 1] = row
  end
  return rows
end

local function outcomes(c)
  local list = c[OUTCOMES]
  if not list then
    list = rows_of(c[OUTCOMES + RAW], OUTCOME)
    c[OUTCOMES] = list
  end
  return list
end

local function attempts(c)
  local list = c[ATTEMPTS]
  if not list then
    list = rows_of(c[ATTEMPTS + RAW], ATTEMPT)
    c[ATTEMPTS] = list
  end
  return list
end

local function wishes(c)
  local list = c[WISHES]
  if not list then
    list = rows_of(c[WISHES + RAW], WISH)
    c[WISHES] = list
  end
  return list
end

local function written(c)
  local list = c[OUTCOMES]
  if list then
    local rows = {}
    for i, o in ipairs(list) do
      rows[i] = struct.pack(
        OUTCOME, o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], #o[9], o[9], #o[10], o[10], #o[11], o[11]
      )
    end
    c[OUTCOMES + RAW] = #rows == 1 and rows[1] or table.concat(rows)
  end
  list = c[ATTEMPTS]
  if list then
    local rows = {}
    for i, a in ipairs(list) do rows[i] = struct.pack(ATTEMPT, a[1], a[2], a[3], #a[4], a[4], #a[5], a[5]) end
    c[ATTEMPTS + RAW] = #rows == 1 and rows[1] or table.concat(rows)
  end
  list = c[WISHES]
  if list then
    local rows = {}
    for i, w in ipairs(list) do rows[i] = struct.pack(WISH, w[1], w[2], w[3]) end
    c[WISHES + RAW] = #rows == 1 and rows[1] or table.concat(rows)
  end
  return struct.pack(
    CARD, c[5], c[6], c[7], c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15], c[16], c[17], c[18], c[19], c[20],
    c[21], c[22], #c[23], c[23], #c[24], c[24], #c[25], c[25], #c[26], c[26], #c[27], c[27], #c[28], c[28], #c[29],
    c[29], #c[30], c[30], #c[31], c[31]
  )
end

-- Read many cards at once.
local function prefetch(keys)
  local names, wanted = {}, {}
  local function fetch()
    for i, raw in ipairs(call('MGET', unpack(names))) do cards[wanted[i]] = read(raw) end
    names, wanted = {}, {}
  end
  for _, key in ipairs(keys) do
    if not cards[key] then
      names[#names + 1] = P .. 't:' .. key
      wanted[#wanted + 1] = key
      if #names == 2000 then fetch() end
    end
  end
  if #names > 0 then fetch() end
end

local function alter(key)
  if not altered[key] then
    altered[key] = true
    alterations[#alterations + 1] = key
  end
end

local erased = {}

-- It is to be removed at the end, unless something still mentions it then.
local function erase(key)
  erased[key] = true
  alter(key)
end

local function is_mentioned(c)
  return c[KIND] ~= 0 or c[WANTERS] > 0 or c[ABOVE] == 1 or #wishes(c) > 0 or #outcomes(c) > 0
end

local function needs(key)
  local c = card(key)
  local list = c[NEEDS]
  if not list then
    list = {}
    local raw = c[COUNT] > INLINE and call('GET', P .. 'n:' .. key) or c[NEEDS + RAW]
    for need in raw:gmatch('[^,]+') do list[#list + 1] = need end
    c[NEEDS] = list
  end
  return list
end

local many = {}  -- command and key -> arguments of one call at the end

local function later(command, name, one, other)
  local of = many[command]
  if not of then
    of = {}
    many[command] = of
  end
  local row = of[name]
  if not row then
    row = {}
    of[name] = row
  end
  row[#row + 1] = one
  if other then row[#row + 1] = other end
end

-- A task's number as commands take it: written here, it is not written as a fraction there.
local function number_of_task(c) return format('%d', c[SEQ]) end

local function run_later(command)
  local of = many[command]
  if of then
    many[command] = nil
    for name, row in pairs(of) do
      for from = 1, #row, 2000 do
        call(command, P .. name, unpack(row, from, math.min(#row, from + 1999)))
      end
    end
  end
end

-- -- functions, groups of notebooks, counts -------------------------------------------------------------------------------

local kinds, groups, joins, flags = {}, {}, {}, nil

local function kind_of(number)
  local kind = kinds[number]
  if not kind then
    kind = unpacked(call('LINDEX', P .. 'kinds', number - 1))
    kinds[number] = kind
  end
  return kind
end

local function labels_of(group)
  if group == 0 then return {} end
  local labels = groups[group]
  if not labels then
    labels = unpacked(call('HGET', P .. 'groups', group))
    groups[group] = labels
  end
  return labels
end

local function group_of(labels)
  table.sort(labels)
  local name = pack(labels)
  local group = tonumber(call('HGET', P .. 'groupnames', name) or nil)
  if not group then
    group = call('HLEN', P .. 'groups') + 1
    call('HSET', P .. 'groups', group, name)
    call('HSET', P .. 'groupnames', name, group)
  end
  groups[group] = labels
  return group
end

local function joined(one, other)
  if one == other or other == 0 then return one end
  if one == 0 then return other end
  local name = one .. '+' .. other
  local found = joins[name]
  if not found then
    local labels, seen = {}, {}
    for _, group in ipairs({one, other}) do
      for _, label in ipairs(labels_of(group)) do
        if not seen[label] then
          seen[label] = true
          labels[#labels + 1] = label
        end
      end
    end
    found = #labels == #labels_of(one) and one or group_of(labels)
    joins[name] = found
  end
  return found
end

local function has_label(group, label)
  for _, each in ipairs(labels_of(group)) do
    if each == label then return true end
  end
  return false
end

local function is_flagged(flag)
  if not flags then
    flags = {}
    for _, name in ipairs(call('SMEMBERS', P .. 'flags')) do flags[name] = true end
  end
  return flags[flag]
end

local function set_flag(flag)
  if not is_flagged(flag) then
    flags[flag] = true
    call('SADD', P .. 'flags', flag)
  end
end

local tallies = {}

local function count(c, by)
  local field = c[KIND] .. ':' .. c[GROUP] .. ':' .. c[TALLIED]
  tallies[field] = (tallies[field] or 0) + by
end

local function tally_as(c, state)
  if state ~= c[TALLIED] then
    if c[TALLIED] >= 0 then count(c, -1) end
    c[TALLIED] = state
    if state >= 0 then count(c, 1) end
  end
end

local stats = {}

-- {done, seconds spent} of a function
local function stat(kind)
  local known = stats[kind]
  if not known then
    local raw = call('HMGET', P .. 'stats', kind .. ':done', kind .. ':spent')
    known = {tonumber(raw[1] or nil) or 0, tonumber(raw[2] or nil) or 0, false}
    stats[kind] = known
  end
  return known
end

local function add_run(kind, duration)
  local known = stat(kind)
  known[1], known[2], known[3] = known[1] + 1, known[2] + duration, true
end

-- -- the ready queue ----------------------------------------------------------------------------------------------------

local ready_rows = {}  -- "kind:group" -> how many became ready in this script

local function retry_at(c)
  local at = 0
  for _, o in ipairs(outcomes(c)) do
    if o[O_RETRY] > at and o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then at = o[O_RETRY] end
  end
  return at
end

local function into_queue(key, c)
  local row = c[KIND] .. ':' .. c[GROUP]
  later('ZADD', 'q:' .. row, number_of_task(c), key)
  ready_rows[row] = (ready_rows[row] or 0) + 1
  c[QUEUED] = IN_QUEUE
  alter(key)
end

local function enqueue(key, c)
  local at = retry_at(c)
  if at > 0 then
    call('ZADD', P .. 'delayed', format('%.17g', at), key)
    c[QUEUED] = DELAYED
    alter(key)
  else
    into_queue(key, c)
  end
end

-- Write what was put into queues so far; then they can be read.
local function fill_queues()
  for row in pairs(ready_rows) do later('SADD', 'queues', row) end
  run_later('ZADD')
  run_later('SADD')
end

local function dequeue(key, c)
  if c[QUEUED] == IN_QUEUE then
    local row = c[KIND] .. ':' .. c[GROUP]
    fill_queues()
    call('ZREM', P .. 'q:' .. row, key)
    if (ready_rows[row] or 0) > 0 then ready_rows[row] = ready_rows[row] - 1 end
  elseif c[QUEUED] == DELAYED then
    call('ZREM', P .. 'delayed', key)
  end
  c[QUEUED] = 0
  alter(key)
end

-- -- what is to follow ----------------------------------------------------------------------------------------------------
-- An item of work is a key, to be visited; {"g", key, group}: that task belongs to these, too; or {"z", name, from,
-- action, argument}: an action on each member of a sorted set, from a number on.

local work, head, tail, waiting_visits = {}, 1, 0, {}
local left = STEP  -- cards that this script may still touch
local began_with_work = false

local function push(item)
  tail = tail + 1
  work[tail] = item
end

local function visit_later(key)
  if not waiting_visits[key] then
    waiting_visits[key] = true
    push(key)
  end
end

local function walk_later(name, action, argument)
  push({'z', name, -1, action, argument or ''})
end

-- Take up what earlier scripts left.
local function take_up()
  local items = call('LRANGE', P .. 'work', 0, STEP - 1)
  if #items > 0 then
    began_with_work = true
    call('LTRIM', P .. 'work', #items, -1)
    for _, raw in ipairs(items) do
      local item = unpacked(raw)
      if type(item) == 'string' then visit_later(item) else push(item) end
    end
  end
end

-- -- deriving -----------------------------------------------------------------------------------------------------------

-- What its needs are worth together; nothing where one has no value.
local function weigh(key, c)
  if c[MISSING] > 0 then return '' end
  if c[COUNT] == 0 then return NO_INPUTS end
  local of = needs(key)
  local worths = {}
  if #of > 1 then prefetch(of) end
  for i, need in ipairs(of) do worths[i] = card(need)[WORTH] end
  return redis.sha1hex(table.concat(worths))
end

local gone = {}

-- Has a worker ended, or not been heard of for a lease?
local function is_gone(worker)
  local known = gone[worker]
  if known == nil then
    known = call('SISMEMBER', P .. 'presumed', worker) == 1 or call('ZSCORE', P .. 'left', worker) ~= false
    gone[worker] = known
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
  if not latest or latest[A_OVER] == 1 or is_gone(latest[A_WORKER]) then return '' end
  for _, o in ipairs(outcomes(c)) do
    if o[O_ATTEMPT] > latest[A_ATTEMPT] and o[O_ROUND] == c[ROUND] and o[O_INPUTS] == c[INPUTS] then return '' end
  end
  return latest[A_WORKER]
end

-- Is one text before another, byte by byte?
local function before(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = one:byte(i), other:byte(i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- Is one row of numbers and texts before another of the same shape?
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

-- Its own final outcome that holds: of this round, on the inputs it has now; finished before failed, then later.
local function heaviest(c)
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

-- No longer wanting something without naming a cell speaks for all cells of the notebook.
local function bars(wish, number)
  if wish[W_WANTED] == 1 then return false end
  local by, origin = origin_of(wish[W_ORIGIN]), origin_of(number)
  return by[3] == '' and by[2] == origin[2] and by[1] == origin[1]
end

-- Does anybody want it; or, with a number, that origin?
local function is_wished(c, number)
  local list = wishes(c)
  if not number and #list < 2 then return #list == 1 and list[1][W_WANTED] == 1 end
  for _, wish in ipairs(list) do
    if wish[W_WANTED] == 1 and (not number or wish[W_ORIGIN] == number) then
      local barred = false
      for _, other in ipairs(list) do
        barred = barred or (other[W_COUNTER] > wish[W_COUNTER] and bars(other, wish[W_ORIGIN]))
      end
      if not barred then return true end
    end
  end
  return false
end

local stands_for  -- see reuse.lua

-- State, worth, the number of the outcome that it has (or 0), and whose that is (or nothing).
local function derive(key, c)
  local has = 0
  if c[INPUTS] ~= '' then
    local held = (c[OUTCOMES] or c[OUTCOMES + RAW] ~= '') and heaviest(c)
    if held then has = held[O_NUMBER] end
    if held and held[O_DIGEST] ~= '' then return FINISHED, held[O_DIGEST], has, '' end
    if not held and (c[ATTEMPTS] or c[ATTEMPTS + RAW] ~= '') and runner(c) ~= '' then return RUNNING, '', 0, '' end
    if c[COUNT] > 0 or is_flagged('accepts') then
      local taken = stands_for(key, c)
      if taken then return FINISHED, taken[3], taken[2], taken[1] end
    end
    if held and c[WANTED] == 1 then return FAILED, '', has, '' end
  end
  if c[WANTED] == 0 then return WITHDRAWN, '', has, '' end
  if c[BLOCKING] > 0 then return BLOCKED, '', has, '' end
  return c[INPUTS] ~= '' and READY or WAITING, '', has, ''
end

local function is_bad(state) return state == FAILED or state == BLOCKED end

local function visit(key)
  local c = card(key)
  local wanted = (c[WISHED] == 1 or c[WANTERS] > 0) and 1 or 0
  if wanted ~= c[WANTED] then
    c[WANTED] = wanted
    alter(key)
    if c[COUNT] > 0 then
      local of = needs(key)
      if #of > 1 then prefetch(of) end
      for _, need in ipairs(of) do
        local n = card(need)
        n[WANTERS] = n[WANTERS] + (wanted == 1 and 1 or -1)
        alter(need)
        if (n[WANTERS] > 0) ~= (n[WANTED] == 1) then visit_later(need) end
      end
    end
  end
  if c[KIND] == 0 then return end
  local state, worth, has, whose = derive(key, c)
  local was = c[STATE]
  if has ~= c[HELD] or whose ~= c[WHOSE] then
    c[HELD], c[WHOSE] = has, whose
    alter(key)
  end
  if worth ~= c[WORTH] or state ~= was then
    if c[ABOVE] == 1 and (worth ~= c[WORTH] or is_bad(state) ~= is_bad(was)) then walk_later('d:' .. key, 'e', key) end
    c[WORTH], c[STATE] = worth, state
    alter(key)
    if was == FAILED then call('ZREM', P .. 'failed', key) end
    if state == FAILED then
      local held = heaviest(c)
      call('ZADD', P .. 'failed', format('%.17g', held[O_STARTED] + held[O_DURATION]), key)
    end
  end
  if state == READY then
    if c[QUEUED] == 0 then enqueue(key, c) end
  elseif c[QUEUED] ~= 0 then
    dequeue(key, c)
  end
  local shown = state
  if state == FINISHED and (wanted == 0 or whose ~= '') then shown = wanted == 1 and REUSED or WITHDRAWN end
  if shown ~= c[TALLIED] then
    tally_as(c, shown)
    alter(key)
  end
end

-- Bring up to date what a task knows of one that it needs.
local function look_at_need(key, need)
  local c, n = card(key), card(need)
  if c[KIND] == 0 then return end
  local was_blocked = c[BLOCKING] > 0
  if n[WORTH] == '' then
    c[MISSING] = c[MISSING] + call('SADD', P .. 'm:' .. key, need)
  elseif c[MISSING] > 0 then
    c[MISSING] = c[MISSING] - call('SREM', P .. 'm:' .. key, need)
  end
  if is_bad(n[STATE]) then
    c[BLOCKING] = c[BLOCKING] + call('SADD', P .. 'b:' .. key, need)
  elseif was_blocked then
    c[BLOCKING] = c[BLOCKING] - call('SREM', P .. 'b:' .. key, need)
  end
  alter(key)
  local inputs = weigh(key, c)
  if inputs ~= c[INPUTS] or was_blocked ~= (c[BLOCKING] > 0) then
    if c[QUEUED] == DELAYED or inputs ~= c[INPUTS] then dequeue(key, c) end
    c[INPUTS] = inputs
    visit_later(key)
  end
end

-- Tasks belong to a notebook that ever wished them, and to a target; so do those they need.
local function belong(key, group)
  local c = card(key)
  local now_in = joined(c[GROUP], group)
  if now_in == c[GROUP] then return end
  local queued, shown = c[QUEUED], c[TALLIED]
  if queued == IN_QUEUE then dequeue(key, c) end
  tally_as(c, -1)
  c[GROUP] = now_in
  tally_as(c, shown)
  if queued == IN_QUEUE then into_queue(key, c) end
  alter(key)
  if c[COUNT] > 0 then
    for _, need in ipairs(needs(key)) do push({'g', need, now_in}) end
  end
end

-- A worker's attempts are void for good.
local function void_attempts(key, worker)
  for _, a in ipairs(attempts(card(key))) do
    if a[A_WORKER] == worker then a[A_OVER] = 1 end
  end
  alter(key)
  later('ZREM', 'h:' .. worker, key)
  visit_later(key)
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
      look_at_need(key, argument)
    elseif action == 'v' then
      visit_later(key)
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

-- Let what follows from changes follow, as far as this script may go.
local function flow()
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
      belong(item[2], item[3])
    end
  end
end

-- -- at the end ---------------------------------------------------------------------------------------------------------

local function wake(waiter)
  call('LPUSH', P .. 'w:' .. waiter, 1)
  call('PEXPIRE', P .. 'w:' .. waiter, 60000)
end

local function fits(row, python, label)
  local kind, group = row:match('(%d+):(%d+)')
  return (python == '' or kind_of(tonumber(kind))[3] == python) and (label == '' or has_label(tonumber(group), label))
end

-- One idle worker for each task that became ready and was not taken at once.
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

-- Write all that was changed. Answers the store's version, and whether something is still to follow.
local function finish()
  fill_queues()
  run_later('ZREM')
  run_later('SREM')
  local write = fresh
  local had_fresh = #write > 0
  for _, key in ipairs(alterations) do
    if erased[key] and not is_mentioned(cards[key]) then
      call('DEL', P .. 't:' .. key)
    else
      write[#write + 1] = P .. 't:' .. key
      write[#write + 1] = written(cards[key])
    end
  end
  for from = 1, #write, 2000 do call('MSET', unpack(write, from, math.min(#write, from + 1999))) end
  for field, by in pairs(tallies) do
    if by ~= 0 then call('HINCRBY', P .. 'tallies', field, by) end
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
  if news or had_fresh or #alterations > 0 then
    ver = call('INCR', P .. 'ver')
    wake_workers()
    for _, watcher in ipairs(call('SMEMBERS', P .. 'watchers')) do wake(watcher) end
    call('DEL', P .. 'watchers')
  else
    ver = tonumber(call('GET', P .. 'ver') or 0)
  end
  return ver, (head <= tail or (began_with_work and call('EXISTS', P .. 'work') == 1)) and 1 or 0
end
