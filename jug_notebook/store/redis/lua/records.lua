-- The base of every script that looks at tasks: the server's keys, task records, and counts.
--
-- KEYS[1] is the prefix of all keys of a project, "jug:{project}:", so that a project lies in one shard:
--   id format ver counter seq   the store's id, its format; version, rising with each write; last request; last task
--   t s n      by key: its record (below), its sealed spec, and its needs where there are many
--   o          by key (later outcomes: KEY:N): size of the verdict (2 bytes), verdict, sealed outcome
--   i a y      by key: its last invalidation; its acceptance, and the same sealed
--   d:KEY      tasks that need it, by number           m:KEY b:KEY  needs without a value; needs that block it
--   l:KEY      tasks that may accept its run
--   kinds kind:K stats   functions: (name, priority, python), numbered; their tasks; their run statistics
--   groups groupnames    sets of labels, numbered: notebooks ("n:PATH") and targets ("t:NAME") that a task belongs to
--   origins originnames wo:N    origins of requests, numbered, and the tasks that each requests
--   tallies              number of tasks by "kind:group:state"     failed   failed tasks by the end of the run
--   ended      outcomes by the end of the run      past pastsize   those that are retired; their bytes
--   queues q:K:G delayed ready tasks, by number; those that may not be retried before a time
--   r:NAME p:NAME x:NAME by form and inputs: tasks that ran, that wait for such a run, whose run was wrong
--   flags                "accepts", "bars": whether any acceptance, or any wrong run, exists
--   work                 pending work that follows from changes; every script does about a thousand records of it
--   info beats late left presumed done ran h:W last:W   processes, what workers did, until when, and what they hold
--   idle watchers w:W    workers that wait for tasks, watchers of the version, and the list that wakes each
--   orders:W log:W  targets targetnames targetkeys
--   blobs sizes v:A c:A:N bin   blobs, by last use; swept ones that may come back, by expiry
--
-- Most scripts return {version, more, …}: `more` is 1 while pending work remains, which flow.lua does.

-- Names in capitals are constants: they are replaced by their values when a script is put together, because Lua allows
-- no more than 200 local names.

local P = KEYS[1]
local call, pack, unpacked, format = redis.call, cmsgpack.pack, cmsgpack.unpack, string.format

local WAITING, READY, RUNNING, FINISHED, FAILED, BLOCKED, CANCELLED, REUSED = 0, 1, 2, 3, 4, 5, 6, 7
local RUNS = 8  -- in tallies: attempts that ended
local NO_INPUTS = '-'  -- of a task without needs; others have a SHA-1 in hex, or '' while a need has no value
local STEP = 1000
local INLINE = 16  -- up to this many needs are kept in the record

-- A task record as it is stored: numbers, then texts after their lengths. In memory, the first four places hold its
-- decoded lists. KIND is 0 for a task that is mentioned but not submitted yet. CURRENT is the number of its current
-- outcome, or 0, and REUSED_FROM the task whose run that is, or ''. ENDED counts attempts that are known to have ended.
local RECORD = '>I4I5I4I4bbBBI4I4I4i4i4I4I4BBI4I4Bc0Bc0Bc0Bc0I4c0I4c0I4c0Hc0I4c0'
local OUTCOMES, ATTEMPTS, REQUESTS, NEEDS = 1, 2, 3, 4
local KIND, SEQ, COUNT, ROUND, STATE, TALLIED, WANTED, REQUESTED, WANTERS, MISSING = 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
local BLOCKING, DIRECT, LOST, NEXT, GROUP, QUEUED, NEEDED, CURRENT, ENDED = 15, 16, 17, 18, 19, 20, 21, 22, 23
local FORM, INPUTS, DIGEST, REUSED_FROM, DROPPED = 24, 25, 26, 27, 32
local RAW = 27  -- distance from a decoded list to its bytes

-- rows of its lists
local OUTCOME = '>I4I4ddBBdI4Bc0Bc0Bc0'
local O_ROUND, O_ATTEMPT, O_STARTED, O_DURATION, O_FINAL, O_DIED, O_RETRY, O_NUMBER = 1, 2, 3, 4, 5, 6, 7, 8
local O_INPUTS, O_DIGEST, O_WORKER = 9, 10, 11
local ATTEMPT = '>I4I4BBc0Bc0'
local A_ROUND, A_ATTEMPT, A_OVER, A_INPUTS, A_WORKER = 1, 2, 3, 4, 5
local REQUEST = '>I4I5B'
local R_ORIGIN, R_COUNTER, R_WANTED = 1, 2, 3

local IN_QUEUE, DELAYED = 1, 2

local now
do
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- -- task records -----------------------------------------------------------------------------------------------------

local records, marked, marked_keys = {}, {}, {}
local changed = false

local function new_record()
  return {
    false, false, false, false, 0, 0, 0, 0, -1, -1, 0, 0, 0, 0, 0, -1, -1, 1, 0, 0, 0, 0, 0, '', '', '', '', '', '', '', '', ''
  }
end

local function read(raw)
  if not raw then return new_record() end
  return {false, false, false, false, struct.unpack(RECORD, raw)}
end

local function record(key)
  local c = records[key]
  if not c then
    c = read(call('HGET', P .. 't', key))
    records[key] = c
  end
  return c
end

local function decode_rows(raw, shape)
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
    list = decode_rows(c[OUTCOMES + RAW], OUTCOME)
    c[OUTCOMES] = list
  end
  return list
end

local function attempts(c)
  local list = c[ATTEMPTS]
  if not list then
    list = decode_rows(c[ATTEMPTS + RAW], ATTEMPT)
    c[ATTEMPTS] = list
  end
  return list
end

local function requests(c)
  local list = c[REQUESTS]
  if not list then
    list = decode_rows(c[REQUESTS + RAW], REQUEST)
    c[REQUESTS] = list
  end
  return list
end

local function encode(c)
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
  list = c[REQUESTS]
  if list then
    local rows = {}
    for i, w in ipairs(list) do rows[i] = struct.pack(REQUEST, w[1], w[2], w[3]) end
    c[REQUESTS + RAW] = #rows == 1 and rows[1] or table.concat(rows)
  end
  return struct.pack(
    RECORD, c[5], c[6], c[7], c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15], c[16], c[17], c[18], c[19], c[20],
    c[21], c[22], c[23], #c[24], c[24], #c[25], c[25], #c[26], c[26], #c[27], c[27], #c[28], c[28], #c[29], c[29],
    #c[30], c[30], #c[31], c[31], #c[32], c[32]
  )
end

-- Read many records at once.
local function prefetch(keys)
  local wanted, count = {}, 0
  local function fetch()
    local raws = call('HMGET', P .. 't', unpack(wanted, 1, count))
    for i = 1, count do records[wanted[i]] = read(raws[i]) end
    count = 0
  end
  for _, key in ipairs(keys) do
    if not records[key] then
      count = count + 1
      wanted[count] = key
      if count == 2000 then fetch() end
    end
  end
  if count > 0 then fetch() end
end

local function mark(key)
  if not marked[key] then
    marked[key] = true
    marked_keys[#marked_keys + 1] = key
  end
end

local erased = {}

-- Remove the record at the end, unless something still mentions it then.
local function erase(key)
  erased[key] = true
  mark(key)
end

local function is_mentioned(c)
  return c[KIND] ~= 0 or c[ROUND] > 0 or c[WANTERS] > 0 or c[NEEDED] == 1 or #requests(c) > 0 or #outcomes(c) > 0
end

local function needs(key)
  local c = record(key)
  local list = c[NEEDS]
  if not list then
    list = {}
    local raw = c[COUNT] > INLINE and call('HGET', P .. 'n', key) or c[NEEDS + RAW]
    for need in raw:gmatch('[^,]+') do list[#list + 1] = need end
    c[NEEDS] = list
  end
  return list
end

local many = {}  -- command -> key -> arguments of one call at the end

local function defer(command, name, one, other)
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

-- A task's number as text for commands, without a fraction.
local function number_of_task(c) return format('%d', c[SEQ]) end

local function run_deferred(command)
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

-- -- functions, groups of notebooks, counts ---------------------------------------------------------------------------

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

local function joined_group(one, other)
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

local tallies, row_names = {}, {}

-- "kind:group", cached, because writing numbers takes long.
local function row_of(c)
  local of = row_names[c[KIND]]
  if not of then
    of = {}
    row_names[c[KIND]] = of
  end
  local row = of[c[GROUP]]
  if not row then
    row = c[KIND] .. ':' .. c[GROUP]
    of[c[GROUP]] = row
  end
  return row
end

local function count(c, state, by)
  local row = row_of(c)
  local of = tallies[row]
  if not of then
    of = {}
    tallies[row] = of
  end
  of[state] = (of[state] or 0) + by
end

local function tally_as(c, state)
  if state ~= c[TALLIED] then
    if c[TALLIED] >= 0 then
      count(c, c[TALLIED], -1)
      if state < 0 then count(c, RUNS, -c[ENDED]) end
    else
      count(c, RUNS, c[ENDED])
    end
    c[TALLIED] = state
    if state >= 0 then count(c, state, 1) end
  end
end

local stats = {}

-- {number done, seconds spent} of a function.
local function stat(kind)
  local known = stats[kind]
  if not known then
    local raw = call('HMGET', P .. 'stats', kind .. ':done', kind .. ':spent')
    known = {tonumber(raw[1] or nil) or 0, tonumber(raw[2] or nil) or 0, false}
    stats[kind] = known
  end
  return known
end

local function add_run(kind, duration, by)
  local known = stat(kind)
  known[1], known[2], known[3] = known[1] + (by or 1), known[2] + duration, true
end
