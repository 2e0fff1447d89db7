-- after: records scheduler reuse
-- Register a target: its tasks, those to come, and what they need, get its label.
-- ARGV: label; {names, keys}. Returns {version, more}.
load_work()
local label, args = ARGV[1], unpacked(ARGV[2])
if call('SADD', P .. 'targets', label) == 1 then
  local group = group_of({label})
  local function add(to, name)
    local raw = call('HGET', P .. to, name)
    local known = raw and unpacked(raw) or {}
    known[#known + 1] = group
    call('HSET', P .. to, name, pack(known))
  end
  local named = {}
  for _, name in ipairs(args[1]) do
    add('targetnames', name)
    named[name] = true
  end
  for _, key in ipairs(args[2]) do
    add('targetkeys', key)
    push({'g', key, group})
  end
  for i, raw in ipairs(call('LRANGE', P .. 'kinds', 0, -1)) do
    if named[unpacked(raw)[1]] then queue_walk('kind:' .. i, 'g', group) end
  end
end
run_work()
return finish()
