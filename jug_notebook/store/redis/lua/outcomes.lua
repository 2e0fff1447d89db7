-- after: records scheduler reuse
-- The current outcomes of tasks. ARGV: keys, packed.
-- Returns {version, more, body or nil per key, {index of the key, number of a body of its proof, …} per reused outcome,
-- these bodies}.
load_work()
run_work()
local ver, more = unpack(finish())

-- Only this much of a record is decoded: all of it takes three times as long. The texts begin with form, inputs, digest,
-- reused from.
local CURRENT_AT, TEXTS_AT = 52, 60

local function current_of(raw)
  local number = struct.unpack('>I4', raw, CURRENT_AT)
  if number == 0 or struct.unpack('>I4', raw) == 0 then return nil end
  local at = TEXTS_AT
  for _ = 1, 3 do at = at + 1 + raw:byte(at) end
  local size = raw:byte(at)
  return number, size > 0 and raw:sub(at + 1, at + size) or nil
end

local keys, found, reused = unpacked(ARGV[1]), {}, {}
for from = 1, #keys, 2000 do
  local upto = math.min(#keys, from + 1999)
  local raws = call('HMGET', P .. 't', unpack(keys, from, upto))
  local names = {}
  for i, raw in ipairs(raws) do
    local name = ''
    if raw then
      local number, owner = current_of(raw)
      if number then
        local key = keys[from + i - 1]
        name = outcome_name(owner or key, number)
        if owner and owner ~= key then
          reused[#reused + 1] = {from + i - 2, unpack(proof(key, owner))}
        end
      end
    end
    names[i] = name
  end
  for _, body in ipairs(call('HMGET', P .. 'o', unpack(names))) do found[#found + 1] = body end
end
return {ver, more, found, reused, read_bodies()}
