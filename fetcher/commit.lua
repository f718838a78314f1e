-- One batch and its checkpoint, in one atomic step. Returns the ts that is stored afterwards: the batch's own if it
-- went out, now or before; another one if somebody else moved the checkpoint, and then nothing has been changed.
--
-- KEYS: checkpoint, seen, stream, dead letters, then the key of each name to cache
-- ARGV: expected ts, new ts, entries to keep in the stream, in the dead letters, in seen,
--       number of events, for each: event_id, channel, JSON,
--       number of dead letters, for each: id or '', number of fields and values, these,
--       for each name: value, seconds
local checkpoint, seen, stream, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stored = redis.call('GET', checkpoint) or ''
if stored ~= ARGV[1] then return stored end

-- A script does not roll back: whatever may be refused is asked before the first write.
for key, kind in pairs({[seen] = 'zset', [stream] = 'stream', [dead] = 'stream'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind)
  end
end
local at = 6
local events = tonumber(ARGV[at])
if redis.acl_check_cmd then
  local commands = {{'SET', checkpoint, ''}, {'ZADD', seen, 0, ''}, {'ZREMRANGEBYRANK', seen, 0, 0},
    {'XADD', stream, '*', 'event', ''}, {'XADD', dead, '*', 'error', ''}}
  if KEYS[5] then commands[#commands + 1] = {'SET', KEYS[5], ''} end
  for i = at + 2, at + 3 * events, 3 do commands[ARGV[i]] = {'PUBLISH', ARGV[i], ''} end
  for _, command in pairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM no permission for ' .. command[1] .. ' ' .. command[2])
    end
  end
end

local score = tonumber(redis.call('ZREVRANGE', seen, 0, 0, 'WITHSCORES')[2] or 0)
local function is_new(id)
  score = score + 1
  return redis.call('ZADD', seen, 'NX', score, id) == 1
end
local live = {}
for i = at + 1, at + 3 * events, 3 do
  if is_new(ARGV[i]) then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], '*', 'event', ARGV[i + 2])
    live[#live + 1] = i
  end
end
at = at + 3 * events + 1
local letters = tonumber(ARGV[at])
at = at + 1
for _ = 1, letters do
  local fields = tonumber(ARGV[at + 1])
  if ARGV[at] == '' or is_new(ARGV[at]) then
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, at + 2, at + 1 + fields))
  end
  at = at + 2 + fields
end
redis.call('SET', checkpoint, ARGV[2])
redis.call('ZREMRANGEBYRANK', seen, 0, -1 - ARGV[5])
for i = 5, #KEYS do
  redis.call('SET', KEYS[i], ARGV[at], 'EX', ARGV[at + 1])
  at = at + 2
end
for _, i in ipairs(live) do redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 2]) end
return ARGV[2]
