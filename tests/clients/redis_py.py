"""What redis-py must be able to do, over both versions of RESP."""

import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection
from redis.exceptions import AuthenticationError, ResponseError, WatchError
from redis.retry import Retry

from checklist import CLUSTER_PORT, OTHER_PORT, PASSWORD, PASSWORD_PORT, PORT, Checklist

checklist = Checklist(f"redis-py {redis.__version__}")


def client(port=PORT, protocol=3, **more):
    return redis.Redis(port=port, protocol=protocol, decode_responses=True, **more)


def both():
    return client(protocol=2), client(protocol=3)


def soon(function):
    """Runs it a moment later, while the caller waits."""
    threading.Timer(0.2, function).start()


def raises(kind, text, function, *args):
    try:
        function(*args)
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def kinds(client):
    """Replies of each kind."""
    client.delete("py:h", "py:z", "py:s", "py:l")
    assert client.hset("py:h", mapping={"f": "v", "g": "w"}) == 2
    assert client.hgetall("py:h") == {"f": "v", "g": "w"}
    client.zadd("py:z", {"m": 1.5, "n": 2})
    assert client.zscore("py:z", "m") == 1.5
    assert client.sadd("py:s", "a", "b") == 2 and client.smembers("py:s") == {"a", "b"}
    assert client.rpush("py:l", *"abc") == 3 and client.lrange("py:l", 0, -1) == list("abc")
    assert client.sismember("py:s", "a") and not client.sismember("py:s", "z")
    assert client.set("py:e", 1, px=60_000) and 0 < client.pttl("py:e") <= 60_000
    assert client.set("py:e", 2, nx=True) is None
    raises(ResponseError, "WRONGTYPE", client.incr, "py:l")


def pairs(reply):
    return list(reply.items()) if isinstance(reply, dict) else reply


def fields(entries):
    """Of RESP3, one list more than of RESP2."""
    if entries and isinstance(entries[0], list):
        entries = entries[0]
    return [entry for _, entry in entries]


@checklist.item("connect")
def connect():
    one = redis.Redis(port=PORT, client_name="me")
    assert one.ping() and one.set("py:a", "1") and one.get("py:a") == b"1"
    assert one.get("py:none") is None
    assert one.client_getname() in ("me", b"me")


@checklist.item("RESP2")
def resp2():
    kinds(client(protocol=2))


@checklist.item("RESP3")
def resp3():
    kinds(client(protocol=3))
    raw = client(protocol=3).execute_command("CONFIG", "GET", "maxmemory")
    assert isinstance(raw, dict), raw


@checklist.item("AUTH")
def auth():
    once = {"port": PASSWORD_PORT, "retry": Retry(NoBackoff(), 0)}
    raises(AuthenticationError, "", client(**once).ping)
    raises(AuthenticationError, "", client(**once, password="no").ping)
    for protocol in 2, 3:
        one = client(port=PASSWORD_PORT, password=PASSWORD, protocol=protocol)
        assert one.ping()
        named = client(port=PASSWORD_PORT, username="default", password=PASSWORD, protocol=protocol)
        assert named.ping()


@checklist.item("SELECT")
def select():
    client().set("py:a", "1")
    third = client(db=3)
    third.delete("py:a")
    assert third.get("py:a") is None and third.set("py:a", 3)
    assert client().get("py:a") == "1" and third.get("py:a") == "3"


@checklist.item("pipeline of 10,000")
def pipeline():
    for one in both():
        pipe = one.pipeline(transaction=False)
        for n in range(5_000):
            pipe.set(f"py:{n}", n)
        for n in range(5_000):
            pipe.get(f"py:{n}")
        assert pipe.execute()[5_000:] == [str(n) for n in range(5_000)]


@checklist.item("MGET MSET DEL")
def split():
    for one in both():
        assert one.mset({f"py:m{n}": n for n in range(100)})
        keys = [f"py:m{n}" for n in range(100)]
        assert one.mget(keys + ["py:none"]) == [str(n) for n in range(100)] + [None]
        assert one.exists(*keys) == 100 and one.delete(*keys) == 100


@checklist.item("64 MiB value")
def large():
    value = bytes(range(256)) * (64 << 12)
    one = redis.Redis(port=PORT)
    assert one.set("py:large", value)
    assert one.get("py:large") == value and one.strlen("py:large") == 64 << 20
    assert one.delete("py:large") == 1


@checklist.item("binary keys")
def binary():
    every = bytes(range(256))
    for one in redis.Redis(port=PORT, protocol=2), redis.Redis(port=PORT, protocol=3):
        assert one.set(every, every) and one.get(every) == every
        assert one.mget(every, b"\r\n", b"") == [every, None, None]
        assert one.delete(every) == 1


@checklist.item("EVALSHA after SCRIPT FLUSH")
def scripts():
    one = client()
    script = one.register_script("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
    keys = [f"py:script{n}" for n in range(16)]
    for _ in range(2):
        one.delete(*keys)
        for key in keys:
            assert script(keys=[key], args=["x"]) == [key, "x", 1]
        assert one.script_flush()
        assert one.script_exists(script.sha) == [False]
        raises(redis.exceptions.NoScriptError, "", one.evalsha, script.sha, 1, "py:script0", "x")
    sha = one.script_load("return ARGV[1]")
    assert all(client(port=OTHER_PORT).evalsha(sha, 1, key, key) == key for key in keys)


@checklist.item("MULTI")
def multi():
    for one in both():
        with one.pipeline() as transaction:
            transaction.set("{py}:t", 1).incr("{py}:t").get("{py}:t")
            assert transaction.execute() == [True, 2, "2"]
        with one.pipeline() as transaction:
            transaction.set("{py}:t", "a").incr("{py}:t").set("{py}:u", 1)
            results = transaction.execute(raise_on_error=False)
            assert results[0] and isinstance(results[1], ResponseError) and results[2]


@checklist.item("WATCH")
def watch():
    for one in both():
        one.set("{py}:w", 1)

        def double(pipe):
            value = int(pipe.get("{py}:w"))
            if value == 1:
                client(port=OTHER_PORT).set("{py}:w", 5)
            pipe.multi()
            pipe.set("{py}:w", value * 2)

        # The first try fails, since another client writes; the second does not.
        assert one.transaction(double, "{py}:w") == [True]
        assert one.get("{py}:w") == "10"
        with one.pipeline() as pipe:
            pipe.watch("{py}:w")
            one.incr("{py}:w")
            pipe.multi()
            pipe.set("{py}:w", 0)
            raises(WatchError, "", pipe.execute)
        assert one.get("{py}:w") == "11"


@checklist.item("BLPOP")
def blpop():
    for one in both():
        one.delete("{py}:q", "{py}:r", "{py}:z2")
        before = time.monotonic()
        assert one.blpop(["{py}:q", "{py}:r"], timeout=0.3) is None
        assert time.monotonic() - before >= 0.3
        soon(lambda: client(port=OTHER_PORT).rpush("{py}:r", "x"))
        popped = one.blpop(["{py}:q", "{py}:r"], timeout=10)
        assert list(popped) == ["{py}:r", "x"], popped
        soon(lambda: client(port=OTHER_PORT).rpush("{py}:q", "y"))
        assert one.blmove("{py}:q", "{py}:r", 10) == "y" and one.lpop("{py}:r") == "y"
        soon(lambda: client(port=OTHER_PORT).zadd("{py}:z2", {"m": 2}))
        popped = one.bzpopmin("{py}:z2", timeout=10)
        assert list(popped) == ["{py}:z2", "m", 2.0], popped


@checklist.item("SUBSCRIBE")
def subscribe():
    for one in both():
        pubsub = one.pubsub()
        pubsub.subscribe("py:c1", "py:c2")
        pubsub.psubscribe("py:p*")
        kinds = [pubsub.get_message(timeout=5)["type"] for _ in range(3)]
        assert kinds == ["subscribe", "subscribe", "psubscribe"], kinds
        for port in PORT, OTHER_PORT:
            client(port=port).publish("py:c1", "hello")
            message = pubsub.get_message(timeout=5)
            assert message == {
                "type": "message",
                "pattern": None,
                "channel": "py:c1",
                "data": "hello",
            }, message
            client(port=port).publish("py:pat", "hi")
            message = pubsub.get_message(timeout=5)
            assert message == {
                "type": "pmessage",
                "pattern": "py:p*",
                "channel": "py:pat",
                "data": "hi",
            }, message
        assert pubsub.get_message(timeout=0.3) is None, "a message came twice"
        pubsub.unsubscribe()
        pubsub.punsubscribe()
        kinds = sorted(pubsub.get_message(timeout=5)["type"] for _ in range(3))
        assert kinds == ["punsubscribe", "unsubscribe", "unsubscribe"], kinds
        pubsub.close()


@checklist.item("XREAD BLOCK")
def xread():
    for one in both():
        one.delete("{py}:x")
        assert not one.xread({"{py}:x": "$"}, block=200)
        soon(lambda: client(port=OTHER_PORT).xadd("{py}:x", {"f": "v"}))
        ((name, entries),) = pairs(one.xread({"{py}:x": "$"}, block=10_000))
        assert name == "{py}:x" and fields(entries) == [{"f": "v"}], entries
        assert one.xgroup_create("{py}:x", "g", id="0")
        ((name, entries),) = pairs(one.xreadgroup("g", "me", {"{py}:x": ">"}, block=10_000))
        assert fields(entries) == [{"f": "v"}], entries
        soon(lambda: client(port=OTHER_PORT).xadd("{py}:x", {"f": "w"}))
        ((name, entries),) = pairs(one.xreadgroup("g", "me", {"{py}:x": ">"}, block=10_000))
        assert fields(entries) == [{"f": "w"}], entries
        assert one.xpending("{py}:x", "g")["pending"] == 2


@checklist.item("SCAN")
def scan():
    for one in both():
        wanted = {f"py:scan:{n}" for n in range(1_000)}
        one.mset({key: 1 for key in wanted})
        one.sadd("py:scan:set", 1)
        found = list(one.scan_iter(match="py:scan:*", count=100, _type="string"))
        assert set(found) == wanted, len(set(found))
        # A scan may go on at any proxy.
        cursor, keys, port = 0, set(), PORT
        while True:
            cursor, batch = client(port=port).scan(cursor, match="py:scan:*", count=50)
            keys.update(batch)
            port = OTHER_PORT if port == PORT else PORT
            if cursor == 0:
                break
        assert keys == wanted | {"py:scan:set"}, len(keys)
        one.delete("py:hash")
        one.hset("py:hash", mapping={n: n for n in range(1_000)})
        assert len(dict(one.hscan_iter("py:hash", count=100))) == 1_000
        assert one.unlink(*keys) == 1_001


@checklist.item("tracking")
def tracking():
    # Its client-side cache, which needs RESP3. It asks for Redis 7.4, but uses nothing that is newer than 7.0.
    CacheProxyConnection.MIN_ALLOWED_VERSION = "7.0.0"
    cached = client(cache_config=CacheConfig())
    for key in "py:cached", "py:other":
        cached.set(key, 1)
        for value in "2", "3":
            cached.get(key)
            assert any(key in entry.redis_keys for entry in cached.get_cache().collection)
            client(port=OTHER_PORT).set(key, value)
            deadline = time.monotonic() + 10
            while cached.get(key) != value:
                assert time.monotonic() < deadline, "no invalidation"
    # The messages of RESP2 go to another connection.
    listener = client(protocol=2).pubsub()
    listener.execute_command("CLIENT", "ID")
    redirect = listener.parse_response()
    listener.subscribe("__redis__:invalidate")
    assert listener.get_message(timeout=5)["type"] == "subscribe"
    one = client(protocol=2, single_connection_client=True)
    assert one.client_tracking_on(clientid=redirect)
    one.get("py:cached")
    client(port=OTHER_PORT).set("py:cached", 9)
    message = listener.get_message(timeout=5)
    assert message and message["data"] == ["py:cached"], message
    assert one.client_tracking_off()
    listener.close()


@checklist.item("CROSSSLOT")
def crossslot():
    one = client(port=CLUSTER_PORT)
    raises(ResponseError, "hash to the same slot", one.rename, "py:0", "py:1")
    raises(ResponseError, "hash to the same slot", one.sinter, ["py:0", "py:1"])


@checklist.item("cluster client")
def cluster():
    for protocol in 2, 3:
        one = redis.RedisCluster(
            host="127.0.0.1", port=CLUSTER_PORT, protocol=protocol, decode_responses=True
        )
        assert sum(1 for _ in one.get_primaries()) == 1
        for n in range(100):
            assert one.set(f"py:{n}", n)
        pipe = one.pipeline()
        for n in range(100):
            pipe.get(f"py:{n}")
        assert pipe.execute() == [str(n) for n in range(100)]
        assert one.mget_nonatomic([f"py:{n}" for n in range(100)]) == [str(n) for n in range(100)]
        assert set(one.scan_iter("py:*")) >= {f"py:{n}" for n in range(100)}
        pubsub = one.pubsub()
        pubsub.ssubscribe("py:shard")
        assert pubsub.get_sharded_message(timeout=5)["type"] == "ssubscribe"
        client(port=CLUSTER_PORT).spublish("py:shard", "hello")
        assert pubsub.get_sharded_message(timeout=5)["data"] == "hello"
        pubsub.close()
        assert one.delete(*[f"py:{n}" for n in range(100)]) == 100
        one.close()


checklist.end()
