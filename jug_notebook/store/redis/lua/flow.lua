-- after: records scheduler reuse
-- Lets what follows from changes follow, one step. Answers version, more to follow.
load_work()
run_work()
local ver, more = finish()
return {ver, more}
