-- Who wants what. Comes after board.lua.

local function number_of(name, names, value)
  local packed = pack(value)
  local number = tonumber(call('HGET', P .. names, packed) or nil)
  if not number then
    number = call('RPUSH', P .. name, packed)
    call('HSET', P .. names, packed, number)
  end
  return number
end

-- A wish's counter: the one given, or one that outweighs all so far.
local function counter_of(given)
  if given == 0 then return call('INCR', P .. 'counter') end
  if given > tonumber(call('GET', P .. 'counter') or 0) then call('SET', P .. 'counter', given) end
  return given
end

-- An origin wants these tasks, or no longer does.
local function wish(keys, origin, given, wanted)
  local number, counter = number_of('origins', 'originnames', origin), counter_of(given)
  local group = wanted and group_of({'n:' .. origin[2]}) or 0
  for _, key in ipairs(keys) do
    local c = card(key)
    if not (wanted and is_wished(c, number)) then
      local known = false
      for i, each in ipairs(c[WISHES]) do
        if each[1] == number then
          known = true
          if counter > each[2] or (counter == each[2] and wanted and not each[3]) then
            c[WISHES][i] = {number, counter, wanted}
          end
        end
      end
      if not known then table.insert(c[WISHES], {number, counter, wanted}) end
      if wanted then
        later('SADD', 'wo:' .. number, key)
      else
        later('SREM', 'wo:' .. number, key)
        for _, each in ipairs(c[WISHES]) do
          if each[3] and each[2] < counter and bars({number, counter, wanted}, each[1]) then
            later('SREM', 'wo:' .. each[1], key)
          end
        end
      end
      alter(key)
      visit_later(key)
    end
    if wanted and joined(c[GROUP], group) ~= c[GROUP] then push({'g', key, group}) end
  end
  return counter
end
