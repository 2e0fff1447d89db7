-- after: records scheduler reuse
-- Tasks for a listing: those with these keys, or a function's, after a given number, a thousand at a time.
-- ARGV: {keys or false, function, from, label, state or -1}.
-- Returns {version, more, {key, function, number, state, worker, started, duration, attempt, reused from} each,
-- next from, or -1}.
load_work()
run_work()
local args = unpacked(ARGV[1])
local keys, on = args[1], -1
if not keys then
  keys = {}
  local rows = call('ZRANGEBYSCORE', P .. 'kind:' .. args[2], format('(%.17g', args[3]), '+inf', 'WITHSCORES', 'LIMIT', 0, STEP)
  for i = 1, #rows, 2 do keys[#keys + 1] = rows[i] end
  if #keys == STEP then on = tonumber(rows[#rows]) end
end
prefetch(keys)
local found = {}
for _, key in ipairs(keys) do
  local c = record(key)
  if c[KIND] ~= 0 and (args[4] == '' or has_label(c[GROUP], args[4])) and (args[5] < 0 or args[5] == c[STATE]) then
    local owner, number = current_outcome(key)
    if owner then
      local o = outcome_of(owner, number)
      found[#found + 1] = {
        key, c[KIND], c[SEQ], c[STATE], o[O_WORKER], format('%.17g', o[O_STARTED]), format('%.17g', o[O_DURATION]),
        o[O_ATTEMPT], c[REUSED_FROM]
      }
    else
      found[#found + 1] = {key, c[KIND], c[SEQ], c[STATE], runner(c), '0', '0', 0, ''}
    end
  end
end
return finish(found, on)
