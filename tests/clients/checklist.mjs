// The checklist of one client or application, as in checklist.py: each item has a deadline and gets one
// line, `ok`, `FAIL` or `-`, the name, the item and the reason, with tabs between them.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// What npm has installed, wherever that is.
export const require = createRequire(`${process.env.CLIENTS}/`);
export const nameOf = (name, library) =>
  `${name} ${JSON.parse(readFileSync(`${process.env.CLIENTS}/node_modules/${library}/package.json`)).version}`;
export const port = Number(process.env.PORT);
export const otherPort = Number(process.env.OTHER_PORT);
export const passwordPort = Number(process.env.PASSWORD_PORT);
export const clusterPort = Number(process.env.CLUSTER_PORT);
export const password = process.env.PASSWORD;

export class Checklist {
  #name;
  #failed = false;

  constructor(name) {
    this.#name = name;
  }

  async item(item, check, seconds = 30) {
    const deadline = new AbortController();
    const late = sleep(seconds * 1000, null, { signal: deadline.signal }).then(() => {
      throw new Error("not done in time");
    });
    try {
      await Promise.race([check(), late]);
      this.#line("ok", item);
    } catch (error) {
      this.#failed = true;
      console.error(error);
      this.#line("FAIL", item, String(error));
    } finally {
      deadline.abort();
      await late.catch(() => {});
    }
  }

  cannot(item, reason) {
    this.#line("-", item, reason);
  }

  // Connections that an item has left behind must not keep it from ending.
  end() {
    process.exit(this.#failed ? 1 : 0);
  }

  #line(result, item, reason = "") {
    console.log([result, this.#name, item, reason.replace(/\s+/g, " ")].join("\t"));
  }
}

// Polls until the check gives something true.
export async function eventually(check, what) {
  for (let tries = 0; tries < 200; tries++) {
    const result = await check();
    if (result) return result;
    await sleep(50);
  }
  throw new Error(`never came: ${what}`);
}
