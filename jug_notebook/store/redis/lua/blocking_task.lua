-- after: records scheduler reuse
-- The failed task that blocks a task. ARGV: key.
-- Returns {version, more, its key or '', 1 if the search must go on from that key}.
load_work()
run_work()
local key, steps = ARGV[1], STEP
while record(key)[STATE] == BLOCKED and steps > 0 do
  local blocking = {}
  for _, need in ipairs(call('SMEMBERS', P .. 'b:' .. key)) do blocking[need] = true end
  local next_key = key
  for _, need in ipairs(needs(key)) do
    if blocking[need] then
      next_key = need
      break
    end
  end
  if next_key == key then break end
  key, steps = next_key, steps - 1
end
local state = record(key)[STATE]
return finish((state == FAILED or state == BLOCKED) and key or '', state == BLOCKED and 1 or 0)
