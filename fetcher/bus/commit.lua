-- One commit in one atomic step; answers the checkpoint as it is afterwards. The theory stands in backlog.py.
--
-- KEYS: checkpoint, seen, stream, dead letters
-- ARGV: kind, since, until, event_ids to keep in seen (0: a part of a batch, after which the checkpoint stays),
--       event_ids that seen holds at least before it forgets any, entries to keep in the stream, in the dead letters,
--       number of events, for each: event_id, channel, JSON ('' for the last entry of the part before),
--       number of dead letters, for each: id or '', number of fields and values, these
--       (an id that begins with 'sha256:' is made of the text, and several updates may have the same)
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

local events, letters_at = tonumber(ARGV[8]), 9 + 3 * ARGV[8]
local letters = tonumber(ARGV[letters_at])
local forgotten = false
if kind ~= 'gap' and kind ~= 'restore' and stored - till >= ARGV[5] / 2 then
  forgotten = #redis.call('ZREVRANGE', seen, ARGV[5] - 1, ARGV[5] - 1) > 0
  if forgotten and (kind == 'repeat' or events + letters == 0) then return stored end
end
if events > 0 and ARGV[11] == '' and not forgotten and not redis.call('ZADD', seen, 'XX', 'INCR', 0, ARGV[9]) then
  return redis.error_reply('LOST the part before')
end
local moves = kind == 'gap' or kind == 'restore' or (kind ~= 'late' and keep > 0 and is_after(till, stored))
local score = tonumber(redis.call('ZREVRANGE', seen, 0, 0, 'WITHSCORES')[2] or 0)
local trims = keep > 0 and math.floor(score / 256) ~= math.floor((score + events + letters) / 256) -- now and then

-- A script does not roll back: whatever may be refused is asked before the first write.
local refused
local function require_type(key, due)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= due then
    refused = redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. due)
  end
end
local function require_permission(command, key, ...)
  if not redis.acl_check_cmd(command, key, ...) then
    refused = redis.error_reply('NOPERM no permission for ' .. command .. ' ' .. key)
  end
end
if events > 0 then require_type(stream, 'stream') end
if letters > 0 or forgotten then require_type(dead, 'stream') end
if redis.acl_check_cmd then
  require_permission('ZADD', seen, '0', '')
  if moves then require_permission('SET', checkpoint, '') end
  if trims then require_permission('ZREMRANGEBYRANK', seen, '0', '0') end
  if events > 0 then require_permission('XADD', stream, '*', 'event', '') end
  if letters > 0 or forgotten then require_permission('XADD', dead, '*', 'error', '') end
  local asked = {}
  for i = 10, letters_at - 1, 3 do
    if ARGV[i + 1] ~= '' and not asked[ARGV[i]] then
      require_permission('PUBLISH', ARGV[i], '')
      asked[ARGV[i]] = true
    end
  end
end
if refused then return refused end

local function is_new(id)
  score = score + 1
  return redis.call('ZADD', seen, 'NX', score, id) == 1
end
-- No dead letter of a batch was ever here while the checkpoint stands at its beginning: they come when it moves.
local fresh = kind == 'batch' and since == stored
local function add_letter(id, ...)
  local is_known = id ~= '' and not is_new(id)
  if not is_known or (fresh and id:sub(1, 7) == 'sha256:') then redis.call('XADD', dead, 'MAXLEN', '~', ARGV[7], '*', ...) end
end

if forgotten then
  local reason = events .. ' events and ' .. letters .. ' dead letters came so late that they may be on the bus already'
  add_letter('late:' .. since .. ':' .. till .. ':' .. events, 'since', since, 'until', till, 'error', reason)
  return stored
end
local live = {}
for i = 9, letters_at - 1, 3 do
  if is_new(ARGV[i]) then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[6], '*', 'event', ARGV[i + 2])
    live[#live + 1] = i
  end
end
local at = letters_at + 1
for _ = 1, letters do
  local last = at + 1 + ARGV[at + 1]
  add_letter(ARGV[at], unpack(ARGV, at + 2, last))
  at = last + 1
end
if moves then
  redis.call('SET', checkpoint, till)
  stored = till
end
if trims then redis.call('ZREMRANGEBYRANK', seen, 0, -1 - keep) end
for _, i in ipairs(live) do redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 2]) end
return stored
