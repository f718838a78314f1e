-- Return which of the fetcher's commands Redis would refuse, without executing them. Before version 7 Redis cannot
-- check this, so the list is empty.
--
-- KEYS: checkpoint, seen, stream, stream of dead letters, heartbeat, the key of a name
-- ARGV: channel
local checkpoint, seen, stream, dead, alive, name = unpack(KEYS)
for number, kind in ipairs({'string', 'zset', 'stream', 'stream', 'string', 'string'}) do
  local call = redis.acl_check_cmd and redis.pcall or redis.call -- a refused TYPE is reported below, if Redis can check
  local found = call('TYPE', KEYS[number]).ok
  if found and found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[number] .. ' is a ' .. found .. ', not a ' .. kind)
  end
end
local refused = {}
for _, command in ipairs({
  {'SET', checkpoint, ''}, {'SET', alive, ''}, {'SET', name, ''}, {'EXISTS', alive}, {'MGET', name},
  {'ZADD', seen, '0', ''}, {'ZREVRANGE', seen, '0', '0'}, {'ZREMRANGEBYRANK', seen, '0', '0'},
  {'TYPE', dead}, {'XADD', stream, '*', 'event', ''}, {'XADD', dead, '*', 'error', ''}, {'PUBLISH', ARGV[1], ''},
}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    refused[#refused + 1] = command[1] .. ' ' .. command[2]
  end
end
return refused
