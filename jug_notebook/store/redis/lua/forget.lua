-- after: records scheduler reuse
-- Forget tasks, as if they had never been submitted, except those that are wanted again or run.
-- ARGV: keys, packed; 1 for a dry run. Returns {version, more, number forgotten, bytes, keys that stay}.
load_work()
run_work()
local keys, forgotten, size, stay = unpacked(ARGV[1]), 0, 0, {}
prefetch(keys)

local function forget(key, c)
  if c[QUEUED] ~= 0 then dequeue(key, c) end
  tally_as(c, -1)
  if c[COUNT] > 0 then
    for _, need in ipairs(needs(key)) do
      call('ZREM', P .. 'd:' .. need, key)
      if c[WANTED] == 1 then
        record(need)[WANTERS] = record(need)[WANTERS] - 1
        mark(need)
        queue_visit(need)
      end
    end
  end
  local inputs = {[c[INPUTS]] = true}
  for _, o in ipairs(outcomes(c)) do
    inputs[o[O_INPUTS]] = true
    if o[O_DIGEST] ~= '' then add_run(c[KIND], -o[O_DURATION], -1) end
  end
  for number = 1, c[NEXT] - 1 do
    local name = outcome_name(key, number)
    if call('ZREM', P .. 'past', name) == 1 then call('DECRBY', P .. 'pastsize', call('HSTRLEN', P .. 'o', name)) end
    call('ZREM', P .. 'ended', name)
    call('HDEL', P .. 'o', name)
  end
  for _, each in ipairs(dropped_inputs(c)) do inputs[each] = true end
  for each in pairs(inputs) do
    call('ZREM', P .. 'r:' .. c[FORM] .. each, key)
    call('ZREM', P .. 'p:' .. c[FORM] .. each, key)
    call('SREM', P .. 'x:' .. c[FORM] .. each, key)
    queue_walk('p:' .. c[FORM] .. each, 'v')
  end
  for _, a in ipairs(attempts(c)) do call('ZREM', P .. 'h:' .. a[A_WORKER], key) end
  for _, request in ipairs(requests(c)) do call('SREM', P .. 'wo:' .. request[R_ORIGIN], key) end
  call('ZREM', P .. 'kind:' .. c[KIND], key)
  call('ZREM', P .. 'failed', key)
  for _, hash in ipairs({'s', 'n', 'i', 'a', 'y'}) do call('HDEL', P .. hash, key) end
  call('UNLINK', P .. 'm:' .. key, P .. 'b:' .. key)
  visit_acceptors(key)
  local wanters, round = c[WANTERS], c[ROUND]
  local blank = new_record()
  for i = 1, #blank do c[i] = blank[i] end
  c[WANTERS] = wanters
  if round > 0 then c[ROUND] = round + 1 end  -- so that late outcomes of invalidated rounds stay invalid
  if call('EXISTS', P .. 'd:' .. key) == 1 then
    c[NEEDED] = 1
    queue_walk('d:' .. key, 'e', key)
  end
  erase(key)
  queue_visit(key)
end

for _, key in ipairs(keys) do
  local c = record(key)
  if c[KIND] ~= 0 and (c[WANTED] == 1 or c[STATE] == RUNNING) then
    stay[#stay + 1] = key
  elseif c[KIND] ~= 0 then
    forgotten, size = forgotten + 1, size + call('HSTRLEN', P .. 's', key)
    for number = 1, c[NEXT] - 1 do size = size + call('HSTRLEN', P .. 'o', outcome_name(key, number)) end
    if ARGV[2] ~= '1' then forget(key, c) end
  end
end
run_work()
return finish(forgotten, size, stay)
