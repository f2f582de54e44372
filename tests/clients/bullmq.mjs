// bullmq: jobs queued, executed, their results and events read; delays, retries, flows, schedules, locks.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { Checklist, eventually, nameOf, otherPort, port, require } from "./checklist.mjs";

const { FlowProducer, Queue, QueueEvents, Worker } = require("bullmq");
const checklist = new Checklist(nameOf("bullmq", "bullmq"));

// With one hash tag its keys share a slot, which its scripts need, as with Redis Cluster.
const prefix = "{bull}";
const here = { prefix, connection: { port } };
const there = { prefix, connection: { port: otherPort, maxRetriesPerRequest: null } };

const queue = new Queue("work", here);
queue.setMaxListeners(0); // each job that is waited for has one
await queue.obliterate({ force: true });
const events = new QueueEvents("work", here);
await events.waitUntilReady();
const done = [];
const work = {
  add: ({ a, b }) => a + b,
  now: () => Date.now(),
  thirdTime: (_, job) => {
    if (job.attemptsMade < 2) throw new Error(`try ${job.attemptsMade}`);
    return job.attemptsMade;
  },
  sum: async (_, job) => Object.values(await job.getChildrenValues()).reduce((sum, value) => sum + value, 0),
  long: () => sleep(1_500),
};
const worker = new Worker(
  "work",
  async (job) => {
    const result = await work[job.name](job.data, job);
    done.push(job.name);
    return result;
  },
  { ...there, concurrency: 10, lockDuration: 500, stalledInterval: 500 },
);
worker.on("error", (error) => console.error(error));

await checklist.item("jobs and their results", async () => {
  const jobs = await queue.addBulk(Array.from({ length: 200 }, (_, n) => ({ name: "add", data: { a: n, b: n } })));
  const results = await Promise.all(jobs.map((job) => job.waitUntilFinished(events, 20_000)));
  assert.deepEqual(
    results,
    Array.from({ length: 200 }, (_, n) => 2 * n),
  );
  assert.equal(await queue.getCompletedCount(), 200);
});

await checklist.item("a job with a delay", async () => {
  const begun = Date.now();
  const job = await queue.add("now", {}, { delay: 700 });
  const ran = await job.waitUntilFinished(events, 20_000);
  assert.ok(ran - begun >= 700);
});

await checklist.item("a job that is tried again", async () => {
  const job = await queue.add("thirdTime", {}, { attempts: 3, backoff: { type: "exponential", delay: 100 } });
  assert.equal(await job.waitUntilFinished(events, 20_000), 2);
  const hopeless = await queue.add("nothing", {}, { attempts: 2 });
  await assert.rejects(hopeless.waitUntilFinished(events, 20_000), /is not a function/);
});

await checklist.item("jobs by their priority", async () => {
  await queue.pause();
  done.length = 0;
  for (const [name, priority] of [
    ["now", 3],
    ["add", 1],
  ])
    await queue.add(name, {}, { priority });
  assert.equal(await queue.getPrioritizedCount(), 2);
  await queue.resume();
  await eventually(() => done.length === 2, "both jobs");
  assert.deepEqual(done, ["add", "now"]);
});

await checklist.item("a job that waits for others", async () => {
  const flow = new FlowProducer(here);
  const children = [1, 2, 3].map((n) => ({ name: "add", queueName: "work", data: { a: n, b: n } }));
  const { job } = await flow.add({ name: "sum", queueName: "work", children });
  assert.equal(await job.waitUntilFinished(events, 20_000), 12);
  await flow.close();
});

await checklist.item("jobs on a schedule", async () => {
  done.length = 0;
  await queue.upsertJobScheduler("often", { every: 300 }, { name: "now" });
  await eventually(() => done.length >= 3, "three of them");
  assert.ok(await queue.removeJobScheduler("often"));
});

await checklist.item("locks that are kept", async () => {
  // It takes longer than its lock lasts.
  const stalled = [];
  worker.on("stalled", (id) => stalled.push(id));
  const job = await queue.add("long", {});
  await job.waitUntilFinished(events, 20_000);
  assert.deepEqual(stalled, []);
  const counts = await queue.getJobCounts("active", "waiting", "failed");
  assert.deepEqual(counts, { active: 0, waiting: 0, failed: 1 });
});

await worker.close();
await events.close();
await queue.close();
checklist.end();
