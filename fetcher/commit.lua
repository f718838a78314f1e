-- One commit in one atomic step; answers the checkpoint as it is afterwards. The theory stands in backlog.py.
--
-- KEYS: checkpoint, seen, stream, dead letters
-- ARGV: kind, since, until, event_ids to keep in seen (0: a part of a batch, after which the checkpoint stays),
--       event_ids that seen holds at least before it forgets any, entries to keep in the stream, in the dead letters,
--       number of events, for each: event_id, channel, JSON,
--       number of dead letters, for each: id or '', number of fields and values, these
local checkpoint, seen, stream, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local kind, since, till, keep = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local stored = redis.call('GET', checkpoint) or ''

local function is_after(ts, other) -- they may outgrow a double
  if #ts ~= #other then return #ts > #other end
  return ts > other
end

if kind == 'restore' then
  if stored ~= '' then return stored end
elseif stored == '' then
  return ''
elseif kind == 'gap' then
  if stored ~= since then return stored end
elseif kind ~= 'late' and is_after(since, stored) then
  return stored
end

local events, first_letter = tonumber(ARGV[8]), 9 + 3 * tonumber(ARGV[8])
local letters, forgotten = tonumber(ARGV[first_letter]), false
if kind ~= 'gap' and kind ~= 'restore' then
  forgotten = stored - till >= ARGV[5] / 2 and redis.call('ZCARD', seen) >= tonumber(ARGV[5])
  if forgotten and (kind == 'repeat' or events + letters == 0) then return stored end
end

-- A script does not roll back: whatever may be refused is asked before the first write.
for key, due in pairs({[seen] = 'zset', [stream] = 'stream', [dead] = 'stream'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= due then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. due)
  end
end
if redis.acl_check_cmd then
  local commands = {{'SET', checkpoint, ''}, {'ZADD', seen, 0, ''}, {'ZREMRANGEBYRANK', seen, 0, 0},
    {'XADD', stream, '*', 'event', ''}, {'XADD', dead, '*', 'error', ''}}
  for i = 10, first_letter - 1, 3 do commands[ARGV[i]] = {'PUBLISH', ARGV[i], ''} end
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
local function add_letter(id, ...)
  if id == '' or is_new(id) then redis.call('XADD', dead, 'MAXLEN', '~', ARGV[7], '*', ...) end
end

if forgotten then
  local reason = events .. ' events and ' .. letters .. ' dead letters came so late that they may be on the bus already'
  add_letter('late:' .. since .. ':' .. till .. ':' .. events, 'since', since, 'until', till, 'error', reason)
  return stored
end
local live = {}
for i = 9, first_letter - 1, 3 do
  if is_new(ARGV[i]) then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[6], '*', 'event', ARGV[i + 2])
    live[#live + 1] = i
  end
end
local at = first_letter + 1
for _ = 1, letters do
  local fields = tonumber(ARGV[at + 1])
  add_letter(ARGV[at], unpack(ARGV, at + 2, at + 1 + fields))
  at = at + 2 + fields
end
if kind == 'gap' or kind == 'restore' or (kind ~= 'late' and keep > 0 and is_after(till, stored)) then
  redis.call('SET', checkpoint, till)
  stored = till
end
if keep > 0 then redis.call('ZREMRANGEBYRANK', seen, 0, -1 - keep) end
for _, i in ipairs(live) do redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 2]) end
return stored
