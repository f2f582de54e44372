"""What valkey-glide must be able to do: the Rust core that all of its languages share."""

import importlib.metadata
import threading
import time

from glide_sync import (
    BackoffStrategy,
    Batch,
    ClientSideCache,
    ClusterBatch,
    ExpirySet,
    ExpiryType,
    GlideClient,
    GlideClientConfiguration,
    GlideClusterClient,
    GlideClusterClientConfiguration,
    Logger,
    LogLevel,
    NodeAddress,
    ProtocolVersion,
    RequestError,
    Script,
    ServerCredentials,
    StreamGroupOptions,
    StreamReadGroupOptions,
    StreamReadOptions,
)

from checklist import CLUSTER_PORT, OTHER_PORT, PASSWORD, PASSWORD_PORT, PORT, Checklist

Logger.set_logger_config(LogLevel.OFF)
checklist = Checklist(f"valkey-glide {importlib.metadata.version('valkey-glide-sync')}")


def client(port=PORT, protocol=ProtocolVersion.RESP3, **more):
    return GlideClient.create(
        GlideClientConfiguration(
            [NodeAddress("127.0.0.1", port)],
            protocol=protocol,
            request_timeout=15_000,
            reconnect_strategy=BackoffStrategy(1, 10, 2),
            **more,
        )
    )


def both():
    return client(protocol=ProtocolVersion.RESP2), client(protocol=ProtocolVersion.RESP3)


def soon(function):
    """Runs it a moment later, while the caller waits."""
    threading.Timer(0.2, function).start()


def raises(text, function, *args, **more):
    try:
        function(*args, **more)
    except Exception as error:
        assert text in str(error), error
    else:
        raise AssertionError("no error")


def kinds(client):
    """Replies of each kind."""
    client.delete(["gl:h", "gl:z", "gl:s", "gl:l"])
    assert client.hset("gl:h", {"f": "v", "g": "w"}) == 2
    assert client.hgetall("gl:h") == {b"f": b"v", b"g": b"w"}
    client.zadd("gl:z", {"m": 1.5, "n": 2})
    assert client.zscore("gl:z", "m") == 1.5
    assert client.sadd("gl:s", ["a", "b"]) == 2 and client.smembers("gl:s") == {b"a", b"b"}
    assert client.rpush("gl:l", ["a", "b", "c"]) == 3
    assert client.lrange("gl:l", 0, -1) == [b"a", b"b", b"c"]
    assert client.sismember("gl:s", "a") and not client.sismember("gl:s", "z")
    assert client.set("gl:e", "1", expiry=ExpirySet(ExpiryType.MILLSEC, 60_000))
    assert 0 < client.pttl("gl:e") <= 60_000
    raises("WRONGTYPE", client.incr, "gl:l")


@checklist.item("connect")
def connect():
    one = client(client_name="me")
    assert one.ping() == b"PONG" and one.set("gl:a", "1") == "OK" and one.get("gl:a") == b"1"
    assert one.get("gl:none") is None and one.client_getname() == b"me"


@checklist.item("RESP2")
def resp2():
    kinds(client(protocol=ProtocolVersion.RESP2))


@checklist.item("RESP3")
def resp3():
    kinds(client(protocol=ProtocolVersion.RESP3))


@checklist.item("AUTH")
def auth():
    once = BackoffStrategy(0, 1, 1)
    for credentials in None, ServerCredentials("no"):
        configuration = GlideClientConfiguration(
            [NodeAddress("127.0.0.1", PASSWORD_PORT)], credentials=credentials, reconnect_strategy=once
        )
        raises("", lambda: GlideClient.create(configuration).ping())
    for credentials in ServerCredentials(PASSWORD), ServerCredentials(PASSWORD, "default"):
        assert client(port=PASSWORD_PORT, credentials=credentials).ping() == b"PONG"


@checklist.item("SELECT")
def select():
    client().set("gl:a", "1")
    third = client(database_id=3)
    third.delete(["gl:a"])
    assert third.get("gl:a") is None and third.set("gl:a", "3") == "OK"
    assert client().get("gl:a") == b"1" and third.get("gl:a") == b"3"


@checklist.item("pipeline of 10,000")
def pipeline():
    for one in both():
        batch = Batch(is_atomic=False)
        for n in range(5_000):
            batch.set(f"gl:{n}", str(n))
        for n in range(5_000):
            batch.get(f"gl:{n}")
        results = one.exec(batch, raise_on_error=True)
        assert results[5_000:] == [b"%d" % n for n in range(5_000)]


@checklist.item("MGET MSET DEL")
def split():
    for one in both():
        assert one.mset({f"gl:m{n}": str(n) for n in range(100)}) == "OK"
        keys = [f"gl:m{n}" for n in range(100)]
        assert one.mget(keys + ["gl:none"]) == [b"%d" % n for n in range(100)] + [None]
        assert one.exists(keys) == 100 and one.delete(keys) == 100


@checklist.item("64 MiB value")
def large():
    value = bytes(range(256)) * (64 << 12)
    one = client()
    assert one.set("gl:large", value) == "OK" and one.strlen("gl:large") == 64 << 20
    assert one.get("gl:large") == value and one.delete(["gl:large"]) == 1


@checklist.item("binary keys")
def binary():
    every = bytes(range(256))
    for one in both():
        assert one.set(every, every) == "OK" and one.get(every) == every
        assert one.mget([every, b"\r\n", b""]) == [every, None, None]
        assert one.delete([every]) == 1


@checklist.item("EVALSHA after SCRIPT FLUSH")
def scripts():
    one = client()
    script = Script("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
    keys = [f"gl:script{n}" for n in range(16)]
    for _ in range(2):
        one.delete(keys)
        for key in keys:
            result = one.invoke_script(script, keys=[key], args=["x"])
            assert result == [key.encode(), b"x", 1], result
        assert one.script_flush() == "OK"
        assert one.script_exists([script.get_hash()]) == [False]


@checklist.item("MULTI")
def multi():
    for one in both():
        transaction = Batch(is_atomic=True)
        transaction.set("{gl}:t", "1")
        transaction.incr("{gl}:t")
        transaction.get("{gl}:t")
        assert one.exec(transaction, raise_on_error=True) == ["OK", 2, b"2"]
        transaction = Batch(is_atomic=True)
        transaction.set("{gl}:t", "a")
        transaction.incr("{gl}:t")
        transaction.set("{gl}:u", "1")
        results = one.exec(transaction, raise_on_error=False)
        assert results[0] == results[2] == "OK" and isinstance(results[1], RequestError), results


@checklist.item("WATCH")
def watch():
    for one in both():
        one.set("{gl}:w", "1")
        transaction = Batch(is_atomic=True)
        transaction.incr("{gl}:w")
        assert one.watch(["{gl}:w"]) == "OK"
        client(port=OTHER_PORT).set("{gl}:w", "5")
        assert one.exec(transaction, raise_on_error=True) is None
        assert one.watch(["{gl}:w"]) == "OK"
        assert one.exec(transaction, raise_on_error=True) == [6]
        assert one.watch(["{gl}:w"]) == "OK"
        client(port=OTHER_PORT).set("{gl}:w", "7")
        assert one.unwatch() == "OK"
        assert one.exec(transaction, raise_on_error=True) == [8]


@checklist.item("BLPOP")
def blpop():
    for one in both():
        one.delete(["{gl}:q", "{gl}:r", "{gl}:z2"])
        before = time.monotonic()
        assert one.blpop(["{gl}:q", "{gl}:r"], 0.3) is None
        assert time.monotonic() - before >= 0.3
        soon(lambda: client(port=OTHER_PORT).rpush("{gl}:r", ["x"]))
        assert one.blpop(["{gl}:q", "{gl}:r"], 10) == [b"{gl}:r", b"x"]
        soon(lambda: client(port=OTHER_PORT).zadd("{gl}:z2", {"m": 2}))
        assert one.bzpopmin(["{gl}:z2"], 10) == [b"{gl}:z2", b"m", 2.0]


@checklist.item("SUBSCRIBE")
def subscribe():
    # It subscribes over RESP3 only, and on the connection that it uses for everything else.
    one = client()
    one.subscribe({"gl:c1", "gl:c2"}, timeout_ms=5_000)
    one.psubscribe({"gl:p*"}, timeout_ms=5_000)
    for port in PORT, OTHER_PORT:
        assert client(port=port).publish("hello", "gl:c1") is not None
        message = one.get_pubsub_message()
        assert (message.message, message.channel, message.pattern) == (b"hello", b"gl:c1", None)
        client(port=port).publish("hi", "gl:pat")
        message = one.get_pubsub_message()
        assert (message.message, message.channel, message.pattern) == (b"hi", b"gl:pat", b"gl:p*")
        assert one.set("gl:a", "1") == "OK"
    time.sleep(0.3)
    assert one.try_get_pubsub_message() is None, "a message came twice"
    one.unsubscribe(timeout_ms=5_000)
    one.punsubscribe(timeout_ms=5_000)


@checklist.item("XREAD BLOCK")
def xread():
    for one in both():
        one.delete(["{gl}:x"])
        assert one.xread({"{gl}:x": "$"}, StreamReadOptions(block_ms=200)) is None
        soon(lambda: client(port=OTHER_PORT).xadd("{gl}:x", [("f", "v")]))
        read = one.xread({"{gl}:x": "$"}, StreamReadOptions(block_ms=10_000))
        assert list(read[b"{gl}:x"].values()) == [[[b"f", b"v"]]], read
        one.xgroup_create("{gl}:x", "g", "0", StreamGroupOptions(make_stream=True))
        soon(lambda: client(port=OTHER_PORT).xadd("{gl}:x", [("f", "w")]))
        for value in b"v", b"w":
            read = one.xreadgroup({"{gl}:x": ">"}, "g", "me", StreamReadGroupOptions(block_ms=10_000))
            assert list(read[b"{gl}:x"].values()) == [[[b"f", value]]], read


@checklist.item("SCAN")
def scan():
    for one in both():
        wanted = {b"gl:scan:%d" % n for n in range(1_000)}
        one.mset({key: "1" for key in wanted})
        cursor, keys = b"0", set()
        while True:
            cursor, batch = one.scan(cursor, match="gl:scan:*", count=100)
            keys.update(batch)
            if cursor == b"0":
                break
        assert keys == wanted, len(keys)
        assert one.unlink(list(keys)) == 1_000


@checklist.item("tracking")
def tracking():
    cache = ClientSideCache.create(
        max_cache_kb=1_024, entry_ttl_ms=600_000, enable_metrics=True, server_assisted=True
    )
    cached = client(client_side_cache=cache)
    for key in "gl:cached", "gl:other":
        cached.set(key, "1")
        for value in b"2", b"3":
            cached.get(key)
            lookups = cached.get_cache_total_lookups()
            assert cached.get(key) != value and cached.get_cache_total_lookups() == lookups + 1
            client(port=OTHER_PORT).set(key, value)
            deadline = time.monotonic() + 10
            while cached.get(key) != value:
                assert time.monotonic() < deadline, "no invalidation"
    assert cached.get_cache_hit_rate() > 0


@checklist.item("CROSSSLOT")
def crossslot():
    one = client(port=CLUSTER_PORT)
    raises("hash to the same slot", one.rename, "gl:0", "gl:1")
    raises("hash to the same slot", one.sinter, ["gl:0", "gl:1"])


@checklist.item("cluster client")
def cluster():
    for protocol in ProtocolVersion.RESP2, ProtocolVersion.RESP3:
        one = GlideClusterClient.create(
            GlideClusterClientConfiguration(
                [NodeAddress("127.0.0.1", CLUSTER_PORT)], protocol=protocol, request_timeout=15_000
            )
        )
        for n in range(100):
            assert one.set(f"gl:{n}", str(n)) == "OK"
        batch = ClusterBatch(is_atomic=False)
        for n in range(100):
            batch.get(f"gl:{n}")
        assert one.exec(batch, raise_on_error=True) == [b"%d" % n for n in range(100)]
        keys = [f"gl:{n}" for n in range(100)]
        assert one.mget(keys) == [b"%d" % n for n in range(100)]
        assert one.delete(keys) == 100


checklist.end()
