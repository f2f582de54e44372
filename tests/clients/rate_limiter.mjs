// rate-limiter-flexible: requests counted and refused, by scripts and by transactions.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { Checklist, nameOf, otherPort, port, require } from "./checklist.mjs";

const { Redis } = require("ioredis");
const { createClient } = require("redis");
const { RateLimiterRedis } = require("rate-limiter-flexible");
const checklist = new Checklist(nameOf("rate-limiter-flexible", "rate-limiter-flexible"));

const stores = [
  { storeClient: new Redis({ port, enableOfflineQueue: false, lazyConnect: true }) },
  { storeClient: await createClient({ socket: { port: otherPort } }).connect(), useRedisPackage: true },
];
await stores[0].storeClient.connect();
const limiters = (options) => stores.map((store) => new RateLimiterRedis({ ...store, ...options }));

await checklist.item("requests counted and refused", async () => {
  const [mine, yours] = limiters({ keyPrefix: "rate", points: 10, duration: 60 });
  for (let user = 0; user < 16; user++) {
    await mine.delete(`user${user}`);
    for (let n = 0; n < 10; n++) {
      const result = await (n % 2 ? mine : yours).consume(`user${user}`);
      assert.equal(result.remainingPoints, 9 - n);
    }
    await assert.rejects(async () => {
      await mine.consume(`user${user}`).catch(({ msBeforeNext }) => {
        throw new Error(msBeforeNext > 0 ? "refused" : "no time");
      });
    }, /refused/);
    assert.equal((await yours.get(`user${user}`)).consumedPoints, 11);
  }
});

await checklist.item("requests forgiven and blocked", async () => {
  const [mine, yours] = limiters({ keyPrefix: "short", points: 1, duration: 1 });
  await mine.delete("user");
  await mine.consume("user");
  await sleep(1_100);
  await yours.consume("user");
  await mine.block("user", 60);
  await assert.rejects(async () => {
    await yours.consume("user").catch(() => {
      throw new Error("refused");
    });
  }, /refused/);
});

checklist.end();
