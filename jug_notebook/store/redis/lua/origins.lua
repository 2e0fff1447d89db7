-- after: records scheduler reuse
-- Every origin that requests something now. Returns {version, more, {user, notebook, cell} each}.
load_work()
run_work()
local found = {}
for number = 1, call('LLEN', P .. 'origins') do
  local cursor = '0'
  repeat
    local part = call('SSCAN', P .. 'wo:' .. number, cursor, 'COUNT', 100)
    cursor = part[1]
    for _, key in ipairs(part[2]) do
      if is_requested(record(key), number) then
        found[#found + 1] = origin_of(number)
        cursor = '0'
        break
      end
    end
  until cursor == '0'
end
return finish(found)
