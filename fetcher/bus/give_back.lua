-- Give a consumer group's dead letter back to this group alone, in one atomic step.
--
-- KEYS: the group's stream of dead letters, the stream of events, the hash of the group's attempts
-- ARGV: the dead letter's entry id, the group, the entry id of the event in the stream of events
-- Returns '' if that is done, otherwise the reason why the dead letter stays. Returns nothing if the dead letter is
-- gone, because another --redrive has given it back or Redis has trimmed it.
local letters, stream, attempts = KEYS[1], KEYS[2], KEYS[3]
local letter, group, id = ARGV[1], ARGV[2], ARGV[3]

-- The event becomes pending for a consumer named 'redrive', as if it had been delivered in 1970. So the group's other
-- consumers take it over at once, as an abandoned entry.
local claim = {'XCLAIM', stream, group, 'redrive', '0', id, 'TIME', '0', 'RETRYCOUNT', '0', 'FORCE', 'JUSTID'}

-- Redis does not roll a script back, so everything that it may refuse is checked before the first write.
for _, command in ipairs({claim, {'HDEL', attempts, id}, {'XDEL', letters, letter}}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM no permission for ' .. command[1])
  end
end
if #redis.call('XRANGE', letters, letter, letter) == 0 then return false end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err and pending.err:find('Invalid stream ID', 1, true) then return 'it names no entry of the stream' end
if pending.err then return pending.err:find('NOGROUP', 1, true) and 'the group does not exist' or pending end
if #redis.call('XRANGE', stream, id, id) == 0 then return 'its event is no longer in the stream' end

redis.call('HDEL', attempts, id)
if #pending == 0 then redis.call(unpack(claim)) end -- otherwise a consumer has it already
redis.call('XDEL', letters, letter)
return ''
