-- Raises the record KEYS[1] to ARGV: cluster, run_id, term, epoch; the highest number that is
-- believed; 1: take over another cluster's; the epoch to admit at where there is no record of this
-- process. Answers `raised`, `unchanged`, `foreign` or `later`.
local was = redis.pcall('HMGET', KEYS[1], 'cluster', 'term', 'epoch', 'run_id')
if was.err then
  if not string.find(was.err, 'WRONGTYPE', 1, true) then return was end
  was = {}
end
local function number(text)
  local n = tonumber(text or '')
  if n and n >= 1 and n <= tonumber(ARGV[5]) and n == math.floor(n) then return n end
  return 0
end
local cluster, run_id = ARGV[1], ARGV[2]
local term, epoch = tonumber(ARGV[3]), tonumber(ARGV[4])
if was[1] == cluster then
  if number(was[2]) > term then return 'later' end
  epoch = math.max(epoch, number(was[3]))
elseif was[1] and ARGV[6] ~= '1' then
  return 'foreign'
end
if was[1] ~= cluster or number(was[3]) == 0 or was[4] ~= run_id then
  epoch = math.max(epoch, tonumber(ARGV[7]))
end
local text = {string.format('%.0f', term), string.format('%.0f', epoch)}
if was[1] == cluster and was[2] == text[1] and was[3] == text[2] and was[4] == run_id then
  return 'unchanged'
end
-- At maxmemory a script may write what needs memory once it has written something that needs none.
redis.call('DEL', KEYS[1])
redis.call('HMSET', KEYS[1], 'cluster', cluster, 'term', text[1], 'epoch', text[2], 'run_id', run_id)
return 'raised'
