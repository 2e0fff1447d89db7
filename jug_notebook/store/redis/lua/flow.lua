-- after: records scheduler reuse
-- Do some of the work that earlier scripts left. Returns {version, more}.
load_work()
run_work()
return finish()
