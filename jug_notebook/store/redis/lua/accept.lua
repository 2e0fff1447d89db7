-- after: records scheduler reuse requests
-- Accept (or, with `undone`, no longer accept) runs of tasks of other code as results of tasks.
-- ARGV: {counter or 0, undone}; then per task {key, round, source, its round}, inputs, digest, sealed acceptance.
-- Returns {version, more, counter}.
load_work()
local args = unpacked(ARGV[1])
local counter = counter_of(args[1])
set_flag('accepts')
for i = 2, #ARGV, 4 do
  local row = unpacked(ARGV[i])
  local key = row[1]
  local acceptance = {counter, args[2], row[2], ARGV[i + 1], row[3], row[4], ARGV[i + 2]}
  local raw = call('HGET', P .. 'a', key)
  local known = raw and unpacked(raw)
  if not known or counter > known[1] or (counter == known[1] and args[2] and not known[2]) then
    call('HSET', P .. 'a', key, pack(acceptance))
    call('HSET', P .. 'y', key, ARGV[i + 3])
  end
  call('SADD', P .. 'l:' .. row[3], key)
  queue_visit(key)
end
changed = true
run_work()
return finish(counter)
