//! What scripts, libraries of functions and dumped values are sent.
//!
//! No script may do what depends on chance, on time, or on the order of an unordered set.

/// For `EVAL`; some call what their keys do not hold, some are none.
pub(super) const SCRIPTS: &[&str] = &[
    "return 1",
    "return {1,'a',false,true,3.7,{2,'b'}}",
    "return KEYS",
    "return ARGV",
    "return redis.call('SET',KEYS[1],ARGV[1])",
    "return redis.call('GET',KEYS[1])",
    "return redis.pcall('INCR',KEYS[1])",
    "return redis.call('INCR',KEYS[1])",
    "return {redis.call('RPUSH',KEYS[1],'a','b'),redis.call('LRANGE',KEYS[1],0,-1)}",
    "redis.setresp(3); return redis.call('ZRANGE',KEYS[1],0,-1,'WITHSCORES')",
    "return redis.call('ZRANGE',KEYS[1],0,-1,'WITHSCORES')",
    "redis.setresp(3); return redis.call('SISMEMBER',KEYS[1],ARGV[1])",
    "return {double=3.25}",
    "return {map={a=1}}",
    "return {set={a=true}}",
    "return {big_number='1234567890123456789012345678901234567890'}",
    "return {verbatim_string={format='txt',string='abc'}}",
    "redis.setresp(3); return redis.call('GET','{none}none')",
    "return redis.status_reply('FINE')",
    "return redis.error_reply('MINE is an error')",
    "return redis.error_reply('-TWICE')",
    "return {err='plain'}",
    "return {ok='fine'}",
    "error('raised')",
    "error({err='MINE raised'})",
    "return redis.call('NOPE')",
    "return redis.pcall('GET')",
    "return redis.call('SUBSCRIBE','c')",
    "return redis.sha1hex(ARGV[1] or '')",
    "return cjson.encode({1,2,{a='b'}})",
    "return cmsgpack.unpack(cmsgpack.pack(ARGV))",
    "return tostring(nothing)",
    "this is no Lua",
    "",
    "#!lua flags=no-writes\nreturn redis.call('GET',KEYS[1])",
    "#!lua flags=no-writes\nreturn redis.call('SET',KEYS[1],'x')",
    "#!lua flags=nope\nreturn 1",
    "#!nope\nreturn 1",
    "return redis.REDIS_VERSION and 1",
    "return {tonumber('12'), bit.bor(1,2), struct.pack('>I2',258)}",
];

/// For `FUNCTION LOAD`.
pub(super) const LIBRARIES: &[&str] = &[
    "#!lua name=one\nredis.register_function('put', function(keys, args) return redis.call('SET', keys[1], args[1]) end)",
    "#!lua name=two\nredis.register_function{function_name='look', callback=function(keys, args) return redis.call('GET', keys[1]) end, flags={'no-writes'}}\n\
     redis.register_function('both', function(keys, args) return {keys, args} end)\n\
     redis.register_function('fail', function() return redis.error_reply('MINE failed') end)",
    "#!lua name=one\nredis.register_function('put', function(keys, args) return redis.call('APPEND', keys[1], args[1]) end)",
    "#!lua name=three\nredis.register_function('put', function() return 3 end)",
    "#!lua name=empty\nreturn 1",
    "#!lua\nreturn 1",
    "#!lua name=bad name\nreturn 1",
    "#!js name=four\nreturn 1",
    "#!lua name=broken\nthis is no Lua",
    "return 1",
    "",
];

/// For `RESTORE`: what `DUMP` of Redis 7.0 says of a string, a number, a list, a sorted set, a set and a
/// hash; and what it never says.
pub(super) const PAYLOADS: &[&[u8]] = &[
    b"\x00\x01a\n\x00\xbf\xfe\xef\x9b\x8f6}\xb4",
    b"\x00\xc190\n\x00\x9d\x94\xea'\x93\xfc\x08\xb9",
    b"\x12\x01\x02\r\r\x00\x00\x00\x02\x00\x81a\x02\x81b\x02\xff\n\x00h\xeb\n\x89\x13A\xbb\xb1",
    b"\x11\x0c\x0c\x00\x00\x00\x02\x00\x81m\x02\x01\x01\xff\n\x00&\xe3\xfd\x9d\xdd}n\xcb",
    b"\x0b\x0e\x02\x00\x00\x00\x03\x00\x00\x00\x01\x00\x02\x00\x03\x00\n\x00\xa5\x02\\\xe2mnM\x1b",
    b"\x10\r\r\x00\x00\x00\x02\x00\x81f\x02\x81v\x02\xff\n\x00 \xf1=D#T\x08\x9d",
    b"\x00\x01a\n\x00\xbf\xfe\xef\x9b\x8f6}\xb5",
    b"nothing of the kind",
];

/// For `FUNCTION RESTORE`: what `FUNCTION DUMP` of Redis 7.0 says of the first library, and what it
/// never says.
pub(super) const FUNCTION_PAYLOADS: &[&[u8]] = &[
    b"\xf5\xc3@g@r\x1f#!lua name=one\nredis.register_fu\rnction('put', \xe0\x00\x0f\x11keys, args) return \x06@:\x08call('SET -@$\x02[1]\x80' \x08\x05) end)\n\x00\x98)\x1c\xb0T\xb7#\xf3",
    b"nothing of the kind",
];
