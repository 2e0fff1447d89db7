-- after: records scheduler reuse
-- Counts. ARGV: a label, or '' for all; processes to look at, as {name, the task it reported}.
-- Returns {version, more, {name, priority, python} per function in order of first submission, {"kind:done", number,
-- "kind:spent", seconds, …}, {function, state, count} each, {settled, task, its function, 1 if that differs from the
-- report, end of its last run} per process}.
load_work()
run_work()
local found, own = {}, {}
for i, raw in ipairs(call('LRANGE', P .. 'kinds', 0, -1)) do own[i] = unpacked(raw) end
local rows = call('HGETALL', P .. 'tallies')
for i = 1, #rows, 2 do
  if rows[i + 1] ~= '0' then
    local kind, group, state = rows[i]:match('(%d+):(%d+):(%d+)')
    if tonumber(state) ~= RUNS and (ARGV[1] == '' or has_label(tonumber(group), ARGV[1])) then
      found[#found + 1] = {tonumber(kind), tonumber(state), tonumber(rows[i + 1])}
    end
  end
end
local busy = {}
for i, asked in ipairs(unpacked(ARGV[2])) do
  local worker, known_task = asked[1], asked[2]
  local task, differs = '', 1
  if known_task ~= '' and runner(record(known_task)) == worker then
    task, differs = known_task, 0
  else
    for _, key in ipairs(call('ZRANGE', P .. 'h:' .. worker, 0, 9)) do
      if task == '' and runner(record(key)) == worker then task = key end
    end
  end
  busy[i] = {
    tonumber(call('HGET', P .. 'done', worker) or 0), task, task ~= '' and kind_of(record(task)[KIND])[1] or '', differs,
    call('HGET', P .. 'ran', worker) or '0'
  }
end
local numbers = call('HGETALL', P .. 'stats')
return finish(own, numbers, found, busy)
