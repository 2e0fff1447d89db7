-- Run a command even if the server is full: a script that has written something already may go on. ARGV: the command.
redis.call('UNLINK', KEYS[1] .. 'full')
return redis.call(unpack(ARGV))
