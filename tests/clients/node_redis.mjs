// What node-redis must be able to do, over both versions of RESP.
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

const { createClient, createCluster, defineScript, RESP_TYPES, WatchError } = require("redis");
const { BasicClientSideCache } = require("@redis/client");
const checklist = new Checklist(nameOf("node-redis", "redis"));

async function connect({ at = port, ...options } = {}) {
  const client = createClient({ socket: { port: at, reconnectStrategy: false }, ...options });
  client.on("error", () => {});
  await client.connect();
  return client;
}
const both = (options) => Promise.all([connect({ RESP: 2, ...options }), connect({ RESP: 3, ...options })]);
const other = await connect({ at: otherPort });
const soon = (action) => setTimeout(action, 200);
const asBuffers = { [RESP_TYPES.BLOB_STRING]: Buffer };

// Replies of each kind.
async function kinds(client) {
  await client.del(["nr:h", "nr:z", "nr:s", "nr:l"]);
  assert.equal(await client.hSet("nr:h", { f: "v", g: "w" }), 2);
  assert.deepEqual({ ...(await client.hGetAll("nr:h")) }, { f: "v", g: "w" });
  assert.equal(
    await client.zAdd("nr:z", [
      { score: 1.5, value: "m" },
      { score: 2, value: "n" },
    ]),
    2,
  );
  assert.equal(await client.zScore("nr:z", "m"), 1.5);
  assert.equal(await client.sAdd("nr:s", ["a", "b"]), 2);
  assert.deepEqual([...(await client.sMembers("nr:s"))].sort(), ["a", "b"]);
  assert.equal(await client.rPush("nr:l", ["a", "b", "c"]), 3);
  assert.deepEqual(await client.lRange("nr:l", 0, -1), ["a", "b", "c"]);
  assert.equal(await client.set("nr:e", "1", { PX: 60_000 }), "OK");
  const left = await client.pTTL("nr:e");
  assert.ok(left > 0 && left <= 60_000);
  assert.equal(await client.set("nr:e", "2", { NX: true }), null);
  await assert.rejects(client.incr("nr:l"), /WRONGTYPE/);
}

await checklist.item("connect", async () => {
  const client = await connect({ name: "me" });
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("nr:a", "1"), "OK");
  assert.equal(await client.get("nr:a"), "1");
  assert.equal(await client.get("nr:none"), null);
  assert.equal(await client.clientGetName(), "me");
});

await checklist.item("RESP2", async () => kinds(await connect({ RESP: 2 })));

await checklist.item("RESP3", async () => kinds(await connect({ RESP: 3 })));

await checklist.item("AUTH", async () => {
  for (const RESP of [2, 3]) {
    for (const more of [{}, { password: "no" }]) {
      await assert.rejects(connect({ at: passwordPort, RESP, ...more }).then((client) => client.ping()));
    }
    for (const more of [{ password }, { username: "default", password }]) {
      assert.equal(await (await connect({ at: passwordPort, RESP, ...more })).ping(), "PONG");
    }
  }
});

await checklist.item("SELECT", async () => {
  await other.set("nr:a", "1");
  const third = await connect({ database: 3 });
  await third.del("nr:a");
  assert.equal(await third.get("nr:a"), null);
  assert.equal(await third.set("nr:a", "3"), "OK");
  assert.equal(await other.get("nr:a"), "1");
  await third.select(0);
  assert.equal(await third.get("nr:a"), "1");
});

await checklist.item("pipeline of 10,000", async () => {
  for (const client of await both()) {
    const sets = Array.from({ length: 5_000 }, (_, n) => client.set(`nr:${n}`, String(n)));
    const gets = Array.from({ length: 5_000 }, (_, n) => client.get(`nr:${n}`));
    assert.ok((await Promise.all(sets)).every((reply) => reply === "OK"));
    assert.deepEqual(
      await Promise.all(gets),
      Array.from({ length: 5_000 }, (_, n) => String(n)),
    );
  }
});

await checklist.item("MGET MSET DEL", async () => {
  for (const client of await both()) {
    const keys = Array.from({ length: 100 }, (_, n) => `nr:m${n}`);
    assert.equal(await client.mSet(keys.map((key, n) => [key, String(n)])), "OK");
    assert.deepEqual(await client.mGet([...keys, "nr:none"]), [...keys.map((_, n) => String(n)), null]);
    assert.equal(await client.exists(keys), 100);
    assert.equal(await client.del(keys), 100);
  }
});

await checklist.item("64 MiB value", async () => {
  const value = Buffer.alloc(64 << 20, "0123456789\r\n");
  const client = (await connect()).withTypeMapping(asBuffers);
  assert.equal(String(await client.set("nr:large", value)), "OK");
  assert.ok(value.equals(await client.get("nr:large")));
  assert.equal(await client.del("nr:large"), 1);
});

await checklist.item("binary keys", async () => {
  const every = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  for (const plain of await both()) {
    const client = plain.withTypeMapping(asBuffers);
    assert.equal(String(await client.set(every, every)), "OK");
    assert.ok(every.equals(await client.get(every)));
    const values = await client.mGet([every, "\r\n", ""]);
    assert.ok(every.equals(values[0]) && values[1] === null && values[2] === null);
    assert.equal(await client.del(every), 1);
  }
});

await checklist.item("EVALSHA after SCRIPT FLUSH", async () => {
  const tell = defineScript({
    SCRIPT: "return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}",
    NUMBER_OF_KEYS: 1,
    parseCommand(parser, key, argument) {
      parser.pushKey(key);
      parser.push(argument);
    },
    transformReply: undefined,
  });
  for (const client of await both({ scripts: { tell } })) {
    const keys = Array.from({ length: 16 }, (_, n) => `nr:script${n}`);
    for (let round = 0; round < 2; round++) {
      await client.del(keys);
      for (const key of keys) assert.deepEqual(await client.tell(key, "x"), [key, "x", 1]);
      assert.equal(await client.scriptFlush(), "OK");
      assert.deepEqual(await client.scriptExists(tell.SHA1), [0]);
    }
  }
});

await checklist.item("MULTI", async () => {
  for (const client of await both()) {
    const results = await client.multi().set("{nr}:t", "1").incr("{nr}:t").get("{nr}:t").exec();
    assert.deepEqual(results, ["OK", 2, "2"]);
    const failed = client.multi().set("{nr}:t", "a").incr("{nr}:t").set("{nr}:u", "1").exec();
    await assert.rejects(failed, (error) => /not an integer/.test(error.replies[1]));
    assert.equal(await client.get("{nr}:u"), "1");
  }
});

await checklist.item("WATCH", async () => {
  for (const client of await both()) {
    await client.set("{nr}:w", "1");
    await client.watch("{nr}:w");
    await other.set("{nr}:w", "5");
    await assert.rejects(client.multi().incr("{nr}:w").exec(), WatchError);
    await client.watch("{nr}:w");
    assert.deepEqual(await client.multi().incr("{nr}:w").exec(), [6]);
    await client.watch("{nr}:w");
    await other.set("{nr}:w", "7");
    await client.unwatch();
    assert.deepEqual(await client.multi().incr("{nr}:w").exec(), [8]);
  }
});

await checklist.item("BLPOP", async () => {
  for (const client of await both()) {
    await client.del(["{nr}:q", "{nr}:r", "{nr}:z2"]);
    assert.equal(await client.blPop(["{nr}:q", "{nr}:r"], 0.3), null);
    soon(() => other.rPush("{nr}:r", "x"));
    assert.deepEqual({ ...(await client.blPop(["{nr}:q", "{nr}:r"], 10)) }, { key: "{nr}:r", element: "x" });
    soon(() => other.rPush("{nr}:q", "y"));
    assert.equal(await client.blMove("{nr}:q", "{nr}:r", "LEFT", "RIGHT", 10), "y");
    soon(() => other.zAdd("{nr}:z2", { score: 2, value: "m" }));
    const popped = await client.bzPopMin("{nr}:z2", 10);
    assert.deepEqual({ ...popped }, { key: "{nr}:z2", value: "m", score: 2 });
    // What is sent behind it is answered behind it.
    soon(() => other.rPush("{nr}:q", "z"));
    const replies = await Promise.all([client.blPop("{nr}:q", 10), client.ping(), client.set("nr:a", "1")]);
    assert.ok(replies[0].element === "z" && replies[1] === "PONG" && replies[2] === "OK");
  }
});

await checklist.item("SUBSCRIBE", async () => {
  for (const client of await both()) {
    const messages = [];
    const heard = (message, channel) => messages.push(`${channel} ${message}`);
    await client.subscribe(["nr:c1", "nr:c2"], heard);
    await client.pSubscribe("nr:p*", heard);
    for (const publisher of [await connect(), other]) {
      messages.length = 0;
      await publisher.publish("nr:c1", "hello");
      await publisher.publish("nr:pat", "hi");
      await eventually(() => messages.length >= 2, "two messages");
      await sleep(100);
      assert.deepEqual(messages.sort(), ["nr:c1 hello", "nr:pat hi"]);
    }
    await client.unsubscribe();
    await client.pUnsubscribe();
    assert.equal(await client.get("nr:none"), null);
  }
});

await checklist.item("XREAD BLOCK", async () => {
  for (const client of await both()) {
    await client.del("{nr}:x");
    assert.equal(await client.xRead({ key: "{nr}:x", id: "$" }, { BLOCK: 200 }), null);
    const only = (read) => [read[0].name, read[0].messages.map(({ id, message }) => [id, { ...message }])];
    soon(() => other.xAdd("{nr}:x", "1-1", { f: "v" }));
    const read = await client.xRead({ key: "{nr}:x", id: "$" }, { BLOCK: 10_000 });
    assert.deepEqual(only(read), ["{nr}:x", [["1-1", { f: "v" }]]]);
    await client.xGroupCreate("{nr}:x", "g", "$");
    soon(() => other.xAdd("{nr}:x", "2-1", { f: "w" }));
    const mine = await client.xReadGroup("g", "me", { key: "{nr}:x", id: ">" }, { BLOCK: 10_000 });
    assert.deepEqual(only(mine), ["{nr}:x", [["2-1", { f: "w" }]]]);
    assert.equal(await client.xAck("{nr}:x", "g", "2-1"), 1);
  }
});

await checklist.item("SCAN", async () => {
  for (const client of await both()) {
    const wanted = Array.from({ length: 1_000 }, (_, n) => `nr:scan:${n}`).sort();
    await client.mSet(wanted.map((key) => [key, "1"]));
    const found = new Set();
    for await (const keys of client.scanIterator({ MATCH: "nr:scan:*", COUNT: 100 })) {
      for (const key of keys) found.add(key);
    }
    assert.deepEqual([...found].sort(), wanted);
    assert.equal(await client.unlink([...found]), 1_000);
  }
});

await checklist.item("tracking", async () => {
  const cache = new BasicClientSideCache({ ttl: 0, maxEntries: 0, recordStats: true });
  const client = await connect({ RESP: 3, clientSideCache: cache });
  for (const key of ["nr:cached", "nr:other"]) {
    await client.set(key, "1");
    for (const value of ["2", "3"]) {
      await client.get(key);
      const hits = cache.stats().hitCount;
      assert.notEqual(await client.get(key), value);
      assert.equal(cache.stats().hitCount, hits + 1);
      await other.set(key, value);
      await eventually(async () => (await client.get(key)) === value, "an invalidation");
    }
  }
});

await checklist.item("CROSSSLOT", async () => {
  const client = await connect({ at: clusterPort });
  await assert.rejects(client.rename("nr:0", "nr:1"), /hash to the same slot/);
  await assert.rejects(client.sInter(["nr:0", "nr:1"]), /hash to the same slot/);
});

await checklist.item("cluster client", async () => {
  for (const RESP of [2, 3]) {
    const cluster = createCluster({ RESP, rootNodes: [{ url: `redis://127.0.0.1:${clusterPort}` }] });
    cluster.on("error", () => {});
    await cluster.connect();
    assert.equal(cluster.masters.length, 1);
    for (let n = 0; n < 100; n++) assert.equal(await cluster.set(`nr:${n}`, String(n)), "OK");
    const values = await Promise.all(Array.from({ length: 100 }, (_, n) => cluster.get(`nr:${n}`)));
    assert.deepEqual(
      values,
      Array.from({ length: 100 }, (_, n) => String(n)),
    );
    assert.deepEqual(await cluster.multi().set("{nr}:t", "1").incr("{nr}:t").exec(), ["OK", 2]);
    cluster.destroy();
  }
});

checklist.end();
