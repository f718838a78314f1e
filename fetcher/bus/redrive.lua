-- Publish the event that the present version has built from a dead letter of the fetcher, and remove the dead letter,
-- in one atomic step.
--
-- KEYS: seen, stream, stream of dead letters
-- ARGV: the dead letter's entry id, event_id, channel, JSON of the event, how many entries the stream keeps
-- Returns '', or nothing if the dead letter is gone: another --redrive has published it, or Redis has trimmed it.
local seen, stream, dead = KEYS[1], KEYS[2], KEYS[3]
local id, event_id, channel, event = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- Redis does not roll a script back, so everything that it may refuse is checked before the first write.
for _, command in ipairs({{'XADD', stream, '*', 'event', ''}, {'ZADD', seen, '0', ''}, {'PUBLISH', channel, ''}}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM no permission for ' .. command[1])
  end
end
local found = redis.call('TYPE', stream).ok
if found ~= 'stream' and found ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. stream .. ' is a ' .. found .. ', not a stream')
end
local score = tonumber(redis.call('ZREVRANGE', seen, 0, 0, 'WITHSCORES')[2] or 0) + 1

if redis.call('XDEL', dead, id) == 0 then return false end
redis.call('ZADD', seen, score, event_id) -- again, because `seen` may have forgotten it
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[5], '*', 'event', event)
redis.call('PUBLISH', channel, event)
return ''
