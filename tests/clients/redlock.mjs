// redlock: locks taken by one client exclude the others, are extended, released, and expire.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { Checklist, nameOf, otherPort, port, require } from "./checklist.mjs";

const { Redis } = require("ioredis");
const { default: Redlock, ExecutionError } = require("redlock");
const checklist = new Checklist(nameOf("redlock", "redlock"));

const clients = [new Redis({ port }), new Redis({ port: otherPort })];
const [mine, yours] = clients.map((client) => new Redlock([client], { retryCount: 0 }));
const patient = new Redlock([clients[1]], { retryCount: 100, retryDelay: 20 });

await checklist.item("a lock excludes", async () => {
  for (let n = 0; n < 16; n++) {
    const lock = await mine.acquire([`lock:${n}`], 10_000);
    await assert.rejects(yours.acquire([`lock:${n}`], 10_000), ExecutionError);
    await lock.release();
    const next = await yours.acquire([`lock:${n}`], 10_000);
    await next.release();
  }
});

await checklist.item("a lock expires", async () => {
  const lock = await mine.acquire(["lock:short"], 300);
  const next = await patient.acquire(["lock:short"], 10_000);
  assert.ok(Date.now() >= lock.expiration - 50);
  // What has expired releases nothing of another's.
  await assert.rejects(lock.release());
  await assert.rejects(mine.acquire(["lock:short"], 300), ExecutionError);
  await next.release();
});

await checklist.item("a lock is extended", async () => {
  const lock = await (await mine.acquire(["lock:long"], 300)).extend(10_000);
  await sleep(400);
  await assert.rejects(yours.acquire(["lock:long"], 300), ExecutionError);
  await lock.release();
});

await checklist.item("a lock on several keys of a slot", async () => {
  const lock = await mine.acquire(["{lock}:a", "{lock}:b"], 10_000);
  await assert.rejects(yours.acquire(["{lock}:b"], 10_000), ExecutionError);
  await lock.release();
});

await checklist.item("one at a time", async () => {
  let inside = 0;
  let most = 0;
  const work = async () => {
    most = Math.max(most, ++inside);
    await sleep(5);
    inside--;
  };
  await Promise.all(
    Array.from({ length: 20 }, (_, n) => {
      const redlock = new Redlock([clients[n % 2]], { retryCount: 1_000, retryDelay: 10 });
      return redlock.using(["lock:using"], 5_000, work);
    }),
  );
  assert.equal(most, 1);
});

await checklist.item("after SCRIPT FLUSH", async () => {
  await clients[0].script("FLUSH");
  const lock = await mine.acquire(["lock:flushed"], 10_000);
  await lock.release();
});

checklist.end();
