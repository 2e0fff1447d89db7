-- after: records scheduler reuse requests
-- Submit tasks, and request them.
-- ARGV: {origin, counter or 0, blobs to keep, functions {name, priority, python}}; then per task key, number of its
-- function among these, keys of its needs with commas, form, sealed spec.
-- Returns {version, more, counter of the request, number of new tasks, number of finished tasks}.
load_work()
local args = unpacked(ARGV[1])
local functions, rows, touched = args[4], {}, {}
for i = 2, #ARGV, 5 do
  local of = {}
  for need in ARGV[i + 2]:gmatch('[^,]+') do
    of[#of + 1] = need
    touched[#touched + 1] = need
  end
  rows[#rows + 1] = {ARGV[i], functions[tonumber(ARGV[i + 1])], of, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]}
  touched[#touched + 1] = ARGV[i]
end
prefetch(touched)
local keys, numbers = {}, {}
local seq = call('INCRBY', P .. 'seq', #rows) - #rows
local targets = call('EXISTS', P .. 'targets') == 1

local function submitted(key, shared, of, written_needs, form, body)
  local c = record(key)
  numbers[shared] = numbers[shared] or number_of('kinds', 'kindnames', shared)
  local kind = numbers[shared]
  seq = seq + 1
  c[KIND], c[SEQ], c[FORM], c[COUNT] = kind, seq, form, #of
  defer('HSET', 's', key, body)
  c[NEEDS] = of
  if #of > INLINE then
    defer('HSET', 'n', key, written_needs)
  else
    c[NEEDS + RAW] = written_needs
  end
  local number = number_of_task(c)
  defer('ZADD', 'kind:' .. kind, number, key)
  for _, need in ipairs(of) do
    local n = record(need)
    n[NEEDED] = 1
    defer('ZADD', 'd:' .. need, number, key)
    if n[DIGEST] == '' then c[MISSING] = c[MISSING] + call('SADD', P .. 'm:' .. key, need) end
    if is_stuck(n[STATE]) then c[BLOCKING] = c[BLOCKING] + call('SADD', P .. 'b:' .. key, need) end
    if c[GROUP] ~= 0 then push({'g', need, c[GROUP]}) end
    if c[WANTED] == 1 then
      n[WANTERS] = n[WANTERS] + 1
      queue_visit(need)
    end
    mark(need)
  end
  c[INPUTS] = inputs_of(key, c)
  c[STATE] = CANCELLED
  for _, o in ipairs(outcomes(c)) do
    if o[O_DIGEST] ~= '' then
      add_run(kind, o[O_DURATION])
      if o[O_INPUTS] ~= NO_INPUTS then add_reusable_run(key, c, o, {false}) end
    end
  end
  if c[DROPPED] ~= '' then block_reuse(key, c) end
  tally_as(c, CANCELLED)
  mark(key)
  queue_visit(key)
  if targets then
    for _, group in ipairs({call('HGET', P .. 'targetnames', shared[1]), call('HGET', P .. 'targetkeys', key)}) do
      for _, each in ipairs(group and unpacked(group) or {}) do push({'g', key, each}) end
    end
  end
end

local seen, new, finished = {}, {}, 0
for _, row in ipairs(rows) do
  local key = row[1]
  if not seen[key] then
    seen[key] = true
    keys[#keys + 1] = key
    local c = record(key)
    if c[KIND] == 0 then
      submitted(key, row[2], row[3], row[4], row[5], row[6])
      new[#new + 1] = key
    elseif c[STATE] == FINISHED then
      finished = finished + 1
    end
  end
end
local counter = set_requested(keys, args[1], args[2], true)
keep_blobs(args[3])
run_deferred('ZADD')  -- the next step reads who needs whom
run_work()
local reused = 0
for _, key in ipairs(new) do
  if record(key)[REUSED_FROM] ~= '' then reused = reused + 1 end
end
return finish(counter, #new - reused, finished + reused)
