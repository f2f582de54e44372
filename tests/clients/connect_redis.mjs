// connect-redis: sessions of express, kept, counted and ended.
import assert from "node:assert/strict";
import { Checklist, eventually, nameOf, otherPort, port, require } from "./checklist.mjs";

const { createClient } = require("redis");
const { RedisStore } = require("connect-redis");
const checklist = new Checklist(nameOf("connect-redis", "connect-redis"));

const clients = await Promise.all([port, otherPort].map((at) => createClient({ socket: { port: at } }).connect()));
const [mine, yours] = clients.map((client) => new RedisStore({ client, prefix: "session:", ttl: 60 }));

await checklist.item("sessions", async () => {
  await mine.clear();
  for (let n = 0; n < 150; n++) await mine.set(`s${n}`, { user: n, cookie: {} });
  assert.equal((await yours.get("s7")).user, 7);
  assert.equal(await yours.length(), 150);
  assert.equal((await yours.all()).length, 150);
  await yours.destroy("s7");
  assert.equal(await mine.length(), 149);
  await mine.clear();
  assert.equal(await yours.length(), 0);
});

await checklist.item("sessions that end", async () => {
  const inSeconds = (seconds) => ({ cookie: { expires: new Date(Date.now() + seconds * 1_000) } });
  await mine.set("short", inSeconds(60));
  await mine.set("long", inSeconds(60));
  await mine.touch("short", inSeconds(1));
  await eventually(async () => (await yours.get("short")) === null, "its end");
  assert.deepEqual(await yours.ids(), ["long"]);
});

checklist.end();
