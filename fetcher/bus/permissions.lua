-- Return which of the fetcher's commands Redis refuses, without executing them. Before version 7 Redis cannot say.
--
-- KEYS: checkpoint, seen, stream, dead letters, heartbeat, a name
-- ARGV: channel
local checkpoint, seen, stream, dead, alive, name = unpack(KEYS)
local found = redis.call('TYPE', stream).ok
if found ~= 'stream' and found ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. stream .. ' is a ' .. found .. ', not a stream')
end
local refused = {}
for _, command in ipairs({
  {'SET', checkpoint, ''}, {'SET', alive, ''}, {'SET', name, ''}, {'EXISTS', alive}, {'MGET', name},
  {'ZADD', seen, '0', ''}, {'ZMSCORE', seen, ''}, {'ZREVRANGE', seen, '0', '0'}, {'ZREMRANGEBYRANK', seen, '0', '0'},
  {'TYPE', dead}, {'XADD', stream, '*', 'event', ''}, {'XADD', dead, '*', 'error', ''}, {'PUBLISH', ARGV[1], ''},
}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    refused[#refused + 1] = command[1] .. ' ' .. command[2]
  end
end
return refused
