// What ioredis must be able to do, over both versions of RESP.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import {
  Checklist,
  clusterPort,
  eventually,
  nameOf,
  otherPort,
  password,
  passwordPort,
  port,
  require,
} from "./checklist.mjs";

const { Redis, Cluster } = require("ioredis");
const checklist = new Checklist(nameOf("ioredis", "ioredis"));

const failed = [];
const connect = (options = {}) => {
  const client = new Redis({ port, ...options });
  client.on("error", (error) => failed.push(error));
  return client;
};
const both = () => [connect({ protocol: 2 }), connect({ protocol: 3 })];
const other = connect({ port: otherPort });
const soon = (action) => setTimeout(action, 200);

// Replies of each kind.
async function kinds(client) {
  await client.del("io:h", "io:z", "io:s", "io:l");
  assert.equal(await client.hset("io:h", { f: "v", g: "w" }), 2);
  assert.deepEqual(await client.hgetall("io:h"), { f: "v", g: "w" });
  assert.equal(await client.zadd("io:z", 1.5, "m", 2, "n"), 2);
  assert.equal(await client.zscore("io:z", "m"), "1.5");
  assert.equal(await client.sadd("io:s", "a", "b"), 2);
  assert.deepEqual((await client.smembers("io:s")).sort(), ["a", "b"]);
  assert.equal(await client.rpush("io:l", "a", "b", "c"), 3);
  assert.deepEqual(await client.lrange("io:l", 0, -1), ["a", "b", "c"]);
  assert.equal(await client.set("io:e", 1, "PX", 60_000), "OK");
  const left = await client.pttl("io:e");
  assert.ok(left > 0 && left <= 60_000);
  assert.equal(await client.set("io:e", 2, "NX"), null);
  await assert.rejects(client.incr("io:l"), /^ReplyError: WRONGTYPE/);
}

await checklist.item("connect", async () => {
  const client = connect({ connectionName: "me" });
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("io:a", "1"), "OK");
  assert.equal(await client.get("io:a"), "1");
  assert.equal(await client.get("io:none"), null);
  assert.equal(await client.client("GETNAME"), "me");
  assert.deepEqual(failed, []);
});

await checklist.item("RESP2", () => kinds(connect({ protocol: 2 })));

await checklist.item("RESP3", async () => {
  await kinds(connect({ protocol: 3 }));
  const client = connect({ protocol: 3, replyMapping: "resp3" });
  assert.deepEqual({ ...(await client.call("HGETALL", "io:h")) }, { f: "v", g: "w" });
  assert.equal(await client.zscore("io:z", "m"), 1.5);
});

await checklist.item("AUTH", async () => {
  for (const protocol of [2, 3]) {
    for (const more of [{}, { password: "no" }]) {
      const client = connect({
        port: passwordPort,
        protocol,
        retryStrategy: null,
        maxRetriesPerRequest: 0,
        ...more,
      });
      await assert.rejects(client.get("io:a"));
      client.disconnect();
    }
    for (const more of [{ password }, { username: "default", password }]) {
      const client = connect({ port: passwordPort, protocol, ...more });
      assert.equal(await client.ping(), "PONG");
    }
  }
});

await checklist.item("SELECT", async () => {
  await other.set("io:a", "1");
  const third = connect({ db: 3 });
  await third.del("io:a");
  assert.equal(await third.get("io:a"), null);
  assert.equal(await third.set("io:a", "3"), "OK");
  assert.equal(await other.get("io:a"), "1");
  assert.equal(await third.select(0), "OK");
  assert.equal(await third.get("io:a"), "1");
});

await checklist.item("pipeline of 10,000", async () => {
  for (const client of [...both(), connect({ enableAutoPipelining: true })]) {
    const pipeline = client.pipeline();
    for (let n = 0; n < 5_000; n++) pipeline.set(`io:${n}`, n);
    for (let n = 0; n < 5_000; n++) pipeline.get(`io:${n}`);
    const results = await pipeline.exec();
    for (let n = 0; n < 5_000; n++) assert.deepEqual(results[5_000 + n], [null, String(n)]);
    const values = await Promise.all(Array.from({ length: 5_000 }, (_, n) => client.get(`io:${n}`)));
    for (let n = 0; n < 5_000; n++) assert.equal(values[n], String(n));
  }
});

await checklist.item("MGET MSET DEL", async () => {
  for (const client of both()) {
    const keys = Array.from({ length: 100 }, (_, n) => `io:m${n}`);
    assert.equal(await client.mset(keys.flatMap((key, n) => [key, n])), "OK");
    assert.deepEqual(await client.mget(...keys, "io:none"), [...keys.map((_, n) => String(n)), null]);
    assert.equal(await client.exists(...keys), 100);
    assert.equal(await client.del(...keys), 100);
  }
});

await checklist.item("64 MiB value", async () => {
  const value = Buffer.alloc(64 << 20, "0123456789\r\n");
  const client = connect();
  assert.equal(await client.set("io:large", value), "OK");
  assert.ok(value.equals(await client.getBuffer("io:large")));
  assert.equal(await client.del("io:large"), 1);
});

await checklist.item("binary keys", async () => {
  const every = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  for (const client of both()) {
    assert.equal(await client.set(every, every), "OK");
    assert.ok(every.equals(await client.getBuffer(every)));
    const values = await client.mgetBuffer(every, "\r\n", "");
    assert.ok(every.equals(values[0]) && values[1] === null && values[2] === null);
    assert.equal(await client.del(every), 1);
  }
});

await checklist.item("EVALSHA after SCRIPT FLUSH", async () => {
  for (const client of both()) {
    const lua = "return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}";
    client.defineCommand("tell", { numberOfKeys: 1, lua });
    const keys = Array.from({ length: 16 }, (_, n) => `io:script${n}`);
    for (let round = 0; round < 2; round++) {
      await client.del(...keys);
      for (const key of keys) assert.deepEqual(await client.tell(key, "x"), [key, "x", 1]);
      assert.equal(await client.script("FLUSH"), "OK");
      const sha = await client.script("LOAD", "return ARGV[1]");
      for (const key of keys) assert.equal(await other.evalsha(sha, 1, key, key), key);
      assert.equal(await client.script("FLUSH"), "OK");
      await assert.rejects(client.evalsha(sha, 1, "io:a", "x"), /NOSCRIPT/);
    }
  }
});

await checklist.item("MULTI", async () => {
  for (const client of both()) {
    const results = await client.multi().set("{io}:t", 1).incr("{io}:t").get("{io}:t").exec();
    assert.deepEqual(results, [
      [null, "OK"],
      [null, 2],
      [null, "2"],
    ]);
    const mixed = await client.multi().set("{io}:t", "a").incr("{io}:t").set("{io}:u", 1).exec();
    assert.ok(mixed[0][1] === "OK" && /not an integer/.test(mixed[1][0]) && mixed[2][1] === "OK");
    assert.equal(await client.multi({ pipeline: false }), "OK");
    assert.equal(await client.set("{io}:t", 1), "QUEUED");
    assert.equal(await client.discard(), "OK");
    assert.equal(await client.get("{io}:t"), "a");
  }
});

await checklist.item("WATCH", async () => {
  for (const client of both()) {
    await client.set("{io}:w", 1);
    assert.equal(await client.watch("{io}:w"), "OK");
    await other.set("{io}:w", 5);
    assert.equal(await client.multi().incr("{io}:w").exec(), null);
    assert.equal(await client.watch("{io}:w"), "OK");
    assert.deepEqual(await client.multi().incr("{io}:w").exec(), [[null, 6]]);
    assert.equal(await client.watch("{io}:w"), "OK");
    await other.set("{io}:w", 7);
    assert.equal(await client.unwatch(), "OK");
    assert.deepEqual(await client.multi().incr("{io}:w").exec(), [[null, 8]]);
  }
});

await checklist.item("BLPOP", async () => {
  for (const client of both()) {
    await client.del("{io}:q", "{io}:r", "{io}:z2");
    assert.equal(await client.blpop("{io}:q", "{io}:r", 0.3), null);
    soon(() => other.rpush("{io}:r", "x"));
    assert.deepEqual(await client.blpop("{io}:q", "{io}:r", 10), ["{io}:r", "x"]);
    soon(() => other.rpush("{io}:q", "y"));
    assert.equal(await client.blmove("{io}:q", "{io}:r", "LEFT", "RIGHT", 10), "y");
    soon(() => other.zadd("{io}:z2", 2, "m"));
    assert.deepEqual(await client.bzpopmin("{io}:z2", 10), ["{io}:z2", "m", "2"]);
    // What is sent behind it is answered behind it.
    soon(() => other.rpush("{io}:q", "z"));
    const replies = await Promise.all([client.blpop("{io}:q", 10), client.ping(), client.set("io:a", 1)]);
    assert.deepEqual(replies, [["{io}:q", "z"], "PONG", "OK"]);
  }
});

await checklist.item("SUBSCRIBE", async () => {
  for (const client of both()) {
    const messages = [];
    client.on("message", (...message) => messages.push(message));
    client.on("pmessage", (...message) => messages.push(message));
    assert.equal(await client.subscribe("io:c1", "io:c2"), 2);
    assert.equal(await client.psubscribe("io:p*"), 3);
    for (const publisher of [connect(), other]) {
      messages.length = 0;
      await publisher.publish("io:c1", "hello");
      await publisher.publish("io:pat", "hi");
      await eventually(() => messages.length >= 2, "two messages");
      await sleep(100);
      assert.deepEqual(messages.sort(), [
        ["io:c1", "hello"],
        ["io:p*", "io:pat", "hi"],
      ]);
    }
    // Without names it would wait until there are no subscriptions of the other kind either.
    assert.equal(await client.unsubscribe("io:c1", "io:c2"), 1);
    assert.equal(await client.punsubscribe("io:p*"), 0);
    assert.equal(await client.get("io:none"), null);
  }
});

await checklist.item("XREAD BLOCK", async () => {
  for (const client of both()) {
    await client.del("{io}:x");
    assert.equal(await client.xread("BLOCK", 200, "STREAMS", "{io}:x", "$"), null);
    soon(() => other.xadd("{io}:x", "1-1", "f", "v"));
    const read = await client.xread("BLOCK", 10_000, "STREAMS", "{io}:x", "$");
    assert.deepEqual(read, [["{io}:x", [["1-1", ["f", "v"]]]]]);
    await client.xgroup("CREATE", "{io}:x", "g", "$");
    soon(() => other.xadd("{io}:x", "2-1", "f", "w"));
    const mine = await client.xreadgroup("GROUP", "g", "me", "BLOCK", 10_000, "STREAMS", "{io}:x", ">");
    assert.deepEqual(mine, [["{io}:x", [["2-1", ["f", "w"]]]]]);
    assert.equal(await client.xack("{io}:x", "g", "2-1"), 1);
  }
});

await checklist.item("SCAN", async () => {
  for (const client of both()) {
    const wanted = Array.from({ length: 1_000 }, (_, n) => `io:scan:${n}`).sort();
    await client.mset(wanted.flatMap((key) => [key, 1]));
    const found = new Set();
    for await (const keys of client.scanStream({ match: "io:scan:*", count: 100 })) {
      for (const key of keys) found.add(key);
    }
    assert.deepEqual([...found].sort(), wanted);
    assert.equal(await client.unlink(...found), 1_000);
  }
});

await checklist.item("tracking", async () => {
  // It has no cache of its own; the messages of RESP2 go to another connection.
  const listener = connect({ protocol: 2 });
  const messages = [];
  listener.on("message", (...message) => messages.push(message));
  const id = await listener.client("ID");
  await listener.subscribe("__redis__:invalidate");
  const client = connect({ protocol: 2 });
  assert.equal(await client.client("TRACKING", "ON", "REDIRECT", id), "OK");
  for (const key of ["io:cached", "io:other"]) {
    await client.get(key);
    await other.set(key, 1);
    await eventually(() => messages.length > 0, "an invalidation");
    assert.deepEqual(messages, [["__redis__:invalidate", key]]);
    messages.length = 0;
  }
});

await checklist.item("CROSSSLOT", async () => {
  const client = connect({ port: clusterPort });
  await assert.rejects(client.rename("io:0", "io:1"), /hash to the same slot/);
  await assert.rejects(client.sinter("io:0", "io:1"), /hash to the same slot/);
});

await checklist.item("cluster client", async () => {
  for (const protocol of [2, 3]) {
    const cluster = new Cluster([{ port: clusterPort }], { redisOptions: { protocol } });
    cluster.on("error", (error) => failed.push(error));
    for (let n = 0; n < 100; n++) assert.equal(await cluster.set(`io:${n}`, n), "OK");
    const values = await Promise.all(Array.from({ length: 100 }, (_, n) => cluster.get(`io:${n}`)));
    assert.deepEqual(
      values,
      Array.from({ length: 100 }, (_, n) => String(n)),
    );
    assert.equal(cluster.nodes("master").length, 1);
    const results = await cluster.multi().set("{io}:t", 1).incr("{io}:t").exec();
    assert.deepEqual(results, [
      [null, "OK"],
      [null, 2],
    ]);
    cluster.disconnect();
  }
});

checklist.end();
