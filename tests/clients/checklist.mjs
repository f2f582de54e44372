// What ioredis must be able to do through a proxy.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [, , modules, port] = process.argv;
const require = createRequire(`${modules}/`);
const Redis = require("ioredis").default ?? require("ioredis");
console.log("ioredis", require("ioredis/package.json").version);

const client = new Redis({ port: Number(port), connectionName: "me" });
client.on("error", (error) => {
  throw error;
});
assert.equal(await client.ping(), "PONG");
assert.equal(await client.set("js:a", "1"), "OK");
assert.equal(await client.get("js:a"), "1");
assert.equal(await client.get("js:none"), null);
const pipeline = client.pipeline();
for (let n = 0; n < 10_000; n++) pipeline.set(`js:${n}`, n);
for (let n = 0; n < 10_000; n++) pipeline.get(`js:${n}`);
const results = await pipeline.exec();
for (let n = 0; n < 10_000; n++) assert.deepEqual(results[10_000 + n], [null, String(n)]);
await client.del("js:h");
assert.equal(await client.hset("js:h", { f: "v", g: "w" }), 2);
assert.deepEqual(await client.hgetall("js:h"), { f: "v", g: "w" });
const keys = Array.from({ length: 100 }, (_, n) => `js:m${n}`);
assert.equal(await client.mset(keys.flatMap((key, n) => [key, n])), "OK");
assert.deepEqual(await client.mget(...keys, "js:none"), [...keys.map((_, n) => String(n)), null]);
assert.equal(await client.del(...keys), 100);
await assert.rejects(client.rename("js:0", "js:1"), /hash to the same slot/);
const other = new Redis({ port: Number(port), db: 3 });
assert.equal(await other.get("js:a"), null);
client.disconnect();
other.disconnect();
console.log("ok");
