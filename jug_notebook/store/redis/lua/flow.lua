-- after: records scheduler reuse
-- Lets what follows from changes follow, one step. Answers version, more to follow.
take_up()
flow()
local ver, more = finish()
return {ver, more}
