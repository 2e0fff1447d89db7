-- Which run a task without a value of its own may reuse; the rules of scheduler/reuse.py. Comes after scheduler.lua.

local function may_be_reused(o) return o[O_DIGEST] ~= '' and o[O_INPUTS] ~= NO_INPUTS end

-- The run to reuse for this form on these inputs: the one that began first among those allowed.
local function earliest_run(name, inputs)
  local runs = call('ZRANGE', P .. 'r:' .. name, 0, -1)
  if #runs == 0 then return false end
  local wrong = is_flagged('bars') and call('SMEMBERS', P .. 'x:' .. name) or {}
  if #runs > 1 then prefetch(runs) end
  local best, best_rank
  for _, key in ipairs(runs) do
    local c = record(key)
    local overridden = false
    for _, other in ipairs(wrong) do overridden = overridden or other ~= key end
    for _, o in ipairs(outcomes(c)) do
      if o[O_INPUTS] == inputs and o[O_DIGEST] ~= '' and o[O_FINAL] == 1 and o[O_ROUND] > c[LOST]
        and not overridden and (#wrong == 0 or o[O_ROUND] > c[DIRECT]) then
        local this = {o[O_STARTED], key, o[O_ROUND], o[O_ATTEMPT], o[O_DIGEST], o[O_WORKER]}
        if not best or row_before(this, best_rank) then
          best, best_rank = {key, o[O_NUMBER], o[O_DIGEST]}, this
        end
      end
    end
  end
  return best or false
end

-- The last acceptance for a task, if it is about the task as it is now:
-- {counter, undone, round, inputs, source, its round, digest}.
local function valid_acceptance(key, c)
  local raw = is_flagged('accepts') and call('HGET', P .. 'a', key)
  local acceptance = raw and unpacked(raw)
  if not acceptance or acceptance[2] or acceptance[3] ~= c[ROUND] or acceptance[4] ~= c[INPUTS] then return false end
  return acceptance
end

local function accepted_run(key, c)
  local acceptance = valid_acceptance(key, c)
  if not acceptance then return false end
  local from = record(acceptance[5])
  if acceptance[6] <= math.max(from[DIRECT], from[LOST]) then return false end
  local best, best_rank
  for _, o in ipairs(outcomes(from)) do
    if o[O_ROUND] == acceptance[6] and o[O_INPUTS] == acceptance[4] and o[O_DIGEST] == acceptance[7] and o[O_FINAL] == 1 then
      local this = {o[O_STARTED], o[O_ATTEMPT], o[O_WORKER]}
      if not best or row_before(this, best_rank) then
        best, best_rank = {acceptance[5], o[O_NUMBER], o[O_DIGEST]}, this
      end
    end
  end
  return best or false
end

reusable_run = function(key, c)
  local found = false
  if c[COUNT] > 0 then
    local name = c[FORM] .. c[INPUTS]
    call('ZADD', P .. 'p:' .. name, number_of_task(c), key)
    found = earliest_run(name, c[INPUTS])
  end
  return found or (is_flagged('accepts') and accepted_run(key, c))
end

-- Before a run is added: the run that would be reused so far, if any task waits for one.
local function run_before(key, c, inputs)
  local name = c[FORM] .. inputs
  call('ZREM', P .. 'p:' .. name, key)
  return call('EXISTS', P .. 'p:' .. name) == 1 and {earliest_run(name, inputs)}
end

-- Add a finished run for reuse by tasks of the same form and inputs. `was` is what `run_before` returned.
local function add_reusable_run(key, c, o, was)
  local name = c[FORM] .. o[O_INPUTS]
  call('ZADD', P .. 'r:' .. name, number_of_task(c), key)
  if o[O_ROUND] <= c[DIRECT] then
    set_flag('bars')
    call('SADD', P .. 'x:' .. name, key)
  end
  if was then
    local one, other = was[1] or {}, earliest_run(name, o[O_INPUTS]) or {}
    if one[1] ~= other[1] or one[2] ~= other[2] then queue_walk('p:' .. name, 'v') end
  end
end

-- The inputs on which the task had reused a value that was wrong.
local function dropped_inputs(c)
  local list = {}
  for inputs in c[DROPPED]:gmatch('[^,]+') do list[#list + 1] = inputs end
  return list
end

-- Other tasks may no longer reuse this task's runs; nor equal runs, if it was wrong.
local function block_reuse(key, c)
  local wrong, all = {}, {}
  for _, o in ipairs(outcomes(c)) do
    if o[O_DIGEST] ~= '' then
      all[o[O_INPUTS]] = true
      if o[O_ROUND] <= c[DIRECT] then wrong[o[O_INPUTS]] = true end
    end
  end
  for _, inputs in ipairs(dropped_inputs(c)) do wrong[inputs], all[inputs] = true, true end
  for inputs in pairs(wrong) do
    set_flag('bars')
    call('SADD', P .. 'x:' .. c[FORM] .. inputs, key)
  end
  for inputs in pairs(all) do queue_walk('p:' .. c[FORM] .. inputs, 'v') end
end

local function visit_acceptors(key)
  if is_flagged('accepts') then
    for _, other in ipairs(call('SMEMBERS', P .. 'l:' .. key)) do queue_visit(other) end
  end
end

local function new_round(key, c, round)
  if round > c[ROUND] then
    if c[QUEUED] ~= 0 then dequeue(key, c) end
    c[ROUND] = round
    local kept = {}
    for _, o in ipairs(outcomes(c)) do
      if o[O_ROUND] >= round or may_be_reused(o) then
        kept[#kept + 1] = o
      elseif o[O_FINAL] == 1 then
        retire(key, o[O_NUMBER])
      end
    end
    c[OUTCOMES] = kept
  end
  mark(key)
  queue_visit(key)
end

-- Invalidate outcomes of this round and earlier. `inputs`: those on which the task had reused its value.
local function invalidate(key, from_round, why, inputs, at, user)
  local c = record(key)
  changed = true
  if why == 'direct' then
    c[DIRECT] = math.max(c[DIRECT], from_round)
  elseif why == 'value lost' then
    c[LOST] = math.max(c[LOST], from_round)
  end
  new_round(key, c, from_round + 1)
  if inputs ~= '' and why == 'direct' then
    local list, known = dropped_inputs(c), false
    for _, each in ipairs(list) do known = known or each == inputs end
    if not known then table.insert(list, inputs) end
    c[DROPPED] = table.concat(list, ',')
  end
  visit_acceptors(key)
  if c[KIND] ~= 0 and why ~= 'retry' and (c[COUNT] > 0 or c[DROPPED] ~= '') then block_reuse(key, c) end
  local raw = call('HGET', P .. 'i', key)
  local acceptance = {from_round, at, user, why}
  if not raw or row_before(unpacked(raw), acceptance) then call('HSET', P .. 'i', key, pack(acceptance)) end
end

-- The current outcome of a task: the task that ran, and the outcome's number; false where there is none.
local function current_outcome(key)
  local c = record(key)
  if c[CURRENT] == 0 then return false end
  return c[REUSED_FROM] ~= '' and c[REUSED_FROM] or key, c[CURRENT]
end

-- The row of an outcome.
local function outcome_of(owner, number)
  for _, o in ipairs(outcomes(record(owner))) do
    if o[O_NUMBER] == number then return o end
  end
end

-- Bodies that a reply contains, each once; `body_of` returns the number of one.
local bodies, body_numbers = {}, {}

local function body_of(hash, field)
  local of = body_numbers[hash]
  if not of then
    of = {}
    body_numbers[hash] = of
  end
  local number = of[field]
  if not number then
    number = #bodies
    bodies[number + 1] = {hash, field}
    of[field] = number
  end
  return number
end

local function read_bodies()
  local read, fields, places = {}, {}, {}
  for i, body in ipairs(bodies) do
    local hash = body[1]
    if not fields[hash] then fields[hash], places[hash] = {}, {} end
    table.insert(fields[hash], body[2])
    table.insert(places[hash], i)
    read[i] = false
  end
  for hash, of in pairs(fields) do
    for from = 1, #of, 2000 do
      local found = call('HMGET', P .. hash, unpack(of, from, math.min(#of, from + 1999)))
      for i = 1, #found do read[places[hash][from + i - 1]] = found[i] end
    end
  end
  return read
end

-- Bodies that prove that a task may have this outcome; none for its own.
local function proof(key, owner)
  if owner == key then return {} end
  if record(key)[FORM] == record(owner)[FORM] then return {body_of('s', key), body_of('s', owner)} end
  return {body_of('y', key)}
end

-- {body of the outcome, bodies of its proof, …}, as numbers.
local function bodies_of(key, owner, number)
  return {body_of('o', outcome_name(owner, number)), unpack(proof(key, owner))}
end
