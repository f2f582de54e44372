"""What redis-py must be able to do through a proxy, over both versions of RESP."""

import sys

import redis

port = int(sys.argv[1])
print("redis-py", redis.__version__)


def check(client):
    assert client.ping()
    assert client.set("py:a", "1") and client.get("py:a") == "1"
    assert client.get("py:none") is None
    pipe = client.pipeline(transaction=False)
    for n in range(10_000):
        pipe.set(f"py:{n}", n)
    for n in range(10_000):
        pipe.get(f"py:{n}")
    assert pipe.execute()[10_000:] == [str(n) for n in range(10_000)]
    with client.pipeline() as transaction:
        transaction.set("{py}:t", 1).incr("{py}:t").get("{py}:t")
        assert transaction.execute() == [True, 2, "2"]
    client.delete("py:h")
    assert client.hset("py:h", mapping={"f": "v", "g": "w"}) == 2
    assert client.hgetall("py:h") == {"f": "v", "g": "w"}
    assert client.mset({f"py:m{n}": n for n in range(100)})
    keys = [f"py:m{n}" for n in range(100)]
    assert client.mget(keys + ["py:none"]) == [str(n) for n in range(100)] + [None]
    assert client.exists(*keys) == 100 and client.delete(*keys) == 100
    client.delete("py:z")
    client.zadd("py:z", {"m": 1.5})
    assert client.zscore("py:z", "m") == 1.5
    try:
        client.rename("py:0", "py:1")
        raise AssertionError("keys of two slots were renamed")
    except redis.exceptions.ResponseError as error:
        assert "hash to the same slot" in str(error), error
    binary = bytes(range(256))
    raw = redis.Redis(port=port)
    assert raw.set(binary, binary) and raw.get(binary) == binary


check(redis.Redis(port=port, decode_responses=True))
check(redis.Redis(port=port, decode_responses=True, protocol=2))
check(redis.Redis(port=port, decode_responses=True, protocol=3))
other = redis.Redis(port=port, decode_responses=True, db=3, client_name="me")
assert other.get("py:a") is None and other.client_getname() == "me"
print("ok")
