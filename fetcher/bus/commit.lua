-- One commit in one atomic step. The theory of operation is in backlog.py.
--
-- KEYS: checkpoint, seen, stream, dead letters
-- ARGV: kind, since, until, how many event_ids seen keeps, entries the stream keeps, dead letters to keep, number of
--       entries, end of VK's answer; for each entry: event_id or '', channel ('' for a dead letter), number of fields
--       and values, fields and values
-- Returns the checkpoint afterwards ('' if none), the numbers of the recorded entries, and how many were left out
-- because they came so late that they may be repetitions.
local checkpoint, seen, stream, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local kind, since, till, window = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local limits = {[stream] = ARGV[5], [dead] = ARGV[6]}
local stored = redis.call('GET', checkpoint) or ''

local function parts(position) -- epoch, ts and part of '12345', '12345+500' or '1:30'
  return ('0:' .. position .. '+0'):match('(%d+):(%d+)%+(%d+)')
end
local function sortable(position) -- as text of fixed length: a ts may be too large for a double
  local epoch, ts, part = parts(position)
  return ('0'):rep(9 - #epoch) .. epoch .. ('0'):rep(30 - #ts) .. ts .. ('0'):rep(9 - #part) .. part
end

local stored_epoch, stored_ts = parts(stored)
local applies = stored == since
if kind == 'batch' then applies = stored_epoch and sortable(since) <= sortable(stored) end
if kind == 'restore' then applies = stored == '' end
if not applies then return {stored, {}, 0} end

local moves = kind ~= 'batch' or sortable(till) > sortable(stored)
local function is_far(position) -- so far behind the checkpoint that seen may have forgotten it
  local epoch, ts = parts(position)
  return not moves and epoch == stored_epoch and stored_ts - ts >= window / 2
end
-- Judged by its beginning: if another fetcher has cut the same updates differently, seen may have forgotten some.
local is_late = is_far(since) and #redis.call('ZREVRANGE', seen, window - 1, window - 1) > 0
local entries, at = {}, 9 -- where each entry begins in ARGV
for i = 1, tonumber(ARGV[7]) do
  entries[i], at = at, at + 3 + ARGV[at + 2]
end

-- Redis does not roll back, so all that it may refuse is checked before the first write.
local refused
local asked = {}
local function require_permission(command, key, ...)
  if not asked[command .. key] and redis.acl_check_cmd and not redis.acl_check_cmd(command, key, ...) then
    refused = redis.error_reply('NOPERM no permission for ' .. command .. ' ' .. key)
  end
  asked[command .. key] = true
end
require_permission('ZADD', seen, '0', '')
require_permission('ZREMRANGEBYRANK', seen, '0', '0')
require_permission('SET', checkpoint, '')
for _, i in ipairs(entries) do
  local key = (ARGV[i + 1] == '' or is_late) and dead or stream
  if key == stream then require_permission('PUBLISH', ARGV[i + 1], '') end
  local found = asked['XADD' .. key] and 'stream' or redis.call('TYPE', key).ok
  if found ~= 'stream' and found ~= 'none' then
    refused = redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a stream')
  end
  require_permission('XADD', key, '*', 'error', '')
end
if refused then return refused end

local score = tonumber(redis.call('ZREVRANGE', seen, 0, 0, 'WITHSCORES')[2] or 0)
local ends_far = is_far(ARGV[8]) -- not `till`: a piece ends at 'ts+part', with the ts at which VK's answer begins
local function is_new(id)
  score = ends_far and 0 or score + 1 -- seen should forget old ids first
  return id == '' or redis.call('ZADD', seen, 'NX', score, id) == 1
end
local function add(key, ...) redis.call('XADD', key, 'MAXLEN', '~', limits[key], '*', ...) end

local recorded, left_out = {}, 0
for number, i in ipairs(entries) do
  local id, key = ARGV[i], ARGV[i + 1] == '' and dead or stream
  if not is_new(id) then -- the bus has it
  elseif is_late then
    left_out = left_out + 1
  else
    add(key, unpack(ARGV, i + 3, i + 2 + ARGV[i + 2]))
    recorded[#recorded + 1] = number
  end
end
if left_out > 0 then
  add(dead, 'since', since, 'until', till, 'error', left_out .. ' updates came so late that they may be on the bus already')
end
redis.call('ZREMRANGEBYRANK', seen, 0, -1 - window)
if moves then redis.call('SET', checkpoint, till) end
for _, number in ipairs(recorded) do
  local i = entries[number]
  if ARGV[i + 1] ~= '' then redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 4]) end
end
return {moves and till or stored, recorded, left_out}
