-- Who requests what. Comes after scheduler.lua.

local function number_of(name, names, value)
  local packed = pack(value)
  local number = tonumber(call('HGET', P .. names, packed) or nil)
  if not number then
    number = call('RPUSH', P .. name, packed)
    call('HSET', P .. names, packed, number)
  end
  return number
end

-- The counter of a request: the given one, or one higher than all so far.
local function counter_of(given)
  if given == 0 then return call('INCR', P .. 'counter') end
  if given > tonumber(call('GET', P .. 'counter') or 0) then call('SET', P .. 'counter', given) end
  return given
end

-- Request these tasks for an origin, or withdraw its requests.
local function set_requested(keys, origin, given, wanted)
  local number, counter = number_of('origins', 'originnames', origin), counter_of(given)
  local group = group_of({'n:' .. origin[2]})  -- a withdrawn request was made once, too
  for _, key in ipairs(keys) do
    local c = record(key)
    if not (wanted and is_requested(c, number)) then
      local list, request = requests(c), {number, counter, wanted and 1 or 0}
      local known = false
      for i, each in ipairs(list) do
        if each[R_ORIGIN] == number then
          known = true
          if counter > each[R_COUNTER] or (counter == each[R_COUNTER] and wanted) then list[i] = request end
        end
      end
      if not known then table.insert(list, request) end
      if #list == 1 then
        defer(wanted and 'SADD' or 'SREM', 'wo:' .. number, key)
      else
        for _, each in ipairs(list) do  -- a withdrawal by one origin may override requests by others
          local stands = is_requested(c, each[R_ORIGIN])
          defer(stands and 'SADD' or 'SREM', 'wo:' .. each[R_ORIGIN], key)
        end
      end
      c[REQUESTED] = is_requested(c) and 1 or 0
      mark(key)
      queue_visit(key)
    end
    if joined_group(c[GROUP], group) ~= c[GROUP] then push({'g', key, group}) end
  end
  return counter
end
