/** Tests when the page comes back to the live feed. The clock is simulated, and the service is a function. */

import assert from "node:assert/strict";
import { after, afterEach, beforeEach, test } from "node:test";
import { load } from "./load.mjs";

const { CONNECT_TIMEOUT_MS, DELAY_MAX_MS, Follower, HIDDEN_MS, SILENCE_MS, STABLE_MS, delayOf } = await load("follower");

let clock, timers, states, asked, gaps, follower, answer;

// Node's own simulated timers are experimental, and each version wants to be called in another way.
const { setTimeout, clearTimeout } = globalThis;
globalThis.setTimeout = (run, delay = 0) => {
  const timer = { run, due: clock + delay };
  timers.add(timer);
  return timer;
};
globalThis.clearTimeout = (timer) => timers.delete(timer);
after(() => Object.assign(globalThis, { setTimeout, clearTimeout }));

beforeEach(() => {
  timers = new Set();
  [clock, states, asked, gaps] = [0, [], [], 0];
  follower = new Follower({
    connect: (headers, signal) => {
      asked.push(headers["Last-Event-ID"]);
      return answer(signal);
    },
    onEvent: () => {},
    onGap: () => (gaps += 1),
    onState: (state) => states.push(state),
    now: () => clock,
  });
});
afterEach(() => follower.stop());

/** Lets everything run that waits for no timer. */
async function settle() {
  for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
}

async function pass(milliseconds) {
  clock += milliseconds;
  for (;;) {
    const [next] = [...timers].filter((timer) => timer.due <= clock).sort((one, other) => one.due - other.due);
    if (next === undefined) break;
    timers.delete(next);
    next.run();
  }
  await settle();
}

/** An answer that sends a text and then nothing; `send` sends more, `end` ends it. */
function stream(text = "") {
  const live = {};
  live.answer = async (signal) => {
    const body = new ReadableStream({
      start(controller) {
        live.send = (more) => controller.enqueue(new TextEncoder().encode(more));
        live.end = () => controller.close();
        signal.addEventListener("abort", () => controller.error(signal.reason));
        live.send(text);
      },
    });
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  };
  return live;
}

const refusal = (properties) => async () => {
  throw Object.assign(new Error("refused"), properties);
};
const state = () => states.at(-1).name;

test("the waits grow, are partly left to chance, and with a failed attempt stay below 10 s", () => {
  assert.deepEqual([0, 1, 2, 3, 4, 5, 1000].map((attempts) => delayOf(attempts, DELAY_MAX_MS, 1)), [250, 500, 1000, 2000, 4000, 4000, 4000]);
  assert.deepEqual([0, 4].map((attempts) => delayOf(attempts, DELAY_MAX_MS, 0)), [125, 2000]);
  assert.ok(DELAY_MAX_MS + CONNECT_TIMEOUT_MS < 10_000);
});

test("a stream that is silent is given up, and continues after its last id", async () => {
  const live = stream("retry: 3000\nid: a-7\n\n");
  answer = live.answer;
  follower.start();
  await settle();
  for (let quarter = 0; quarter < 8; quarter += 1) {
    await pass(15_000);
    live.send(":\n\n");
    await settle();
  }
  assert.equal(state(), "live");
  await pass(SILENCE_MS - 1);
  assert.equal(state(), "live");
  await pass(1);
  assert.deepEqual([state(), states.at(-1).why], ["waiting", "the connection is silent"]);
  await pass(250);
  assert.deepEqual([state(), asked, gaps], ["live", [undefined, "a-7"], 0]);
});

test("an attempt without an answer is given up", async () => {
  answer = (signal) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  follower.start();
  await pass(CONNECT_TIMEOUT_MS - 1);
  assert.equal(state(), "connecting");
  await pass(1);
  assert.equal(state(), "waiting");
});

test("a service that ends each stream at once is asked less and less, one that lasted is asked soon", async () => {
  const ending = async () => new Response("id: a-1\n\n", { headers: { "Content-Type": "text/event-stream" } });
  answer = ending;
  follower.start();
  await settle();
  for (let attempt = 0; attempt < 6; attempt += 1) await pass(states.at(-1).delayMs);
  assert.ok(states.at(-1).delayMs >= DELAY_MAX_MS / 2);
  const live = stream();
  answer = live.answer;
  await pass(DELAY_MAX_MS);
  assert.equal(state(), "live");
  await pass(STABLE_MS);
  live.end();
  await settle();
  assert.ok(states.at(-1).delayMs <= 250);
});

test("Retry-After is honoured within reason", async () => {
  for (const [status, retryAfterS, least, most] of [[503, 300, 5000, 5000], [503, 1, 125, 1000], [429, 30, 30_000, 30_000], [429, 3000, 60_000, 60_000], [502, 300, 125, 250]]) {
    answer = refusal({ status, retryAfterS });
    follower.start();
    await settle();
    const { delayMs } = states.at(-1);
    assert.ok(delayMs >= least && delayMs <= most, `${status}: ${delayMs}`);
  }
});

test("a refusal that only another token can change stops the feed", async () => {
  answer = refusal({ status: 401, stop: true });
  follower.start();
  await settle();
  assert.deepEqual([state(), asked.length], ["stopped", 1]);
  await pass(600_000);
  assert.equal(asked.length, 1);
});

test("a tab that is hidden for long pauses, and continues where it was when it is shown", async () => {
  answer = stream("id: a-7\n\n").answer;
  follower.start();
  await settle();
  follower.setHidden(true);
  await pass(HIDDEN_MS - 1);
  follower.setHidden(false);
  follower.setHidden(true);
  await pass(HIDDEN_MS - 1);
  assert.equal(state(), "live");
  await pass(1);
  assert.equal(state(), "paused");
  follower.setHidden(false);
  await settle();
  assert.deepEqual([state(), asked.at(-1), gaps], ["live", "a-7", 0]);
});

test("what was read before the feed was live is read again if no id tells what was missed", async () => {
  answer = refusal({ status: 502 });
  follower.start();
  await settle();
  follower.noteReading();
  answer = stream("id: a-7\n\n").answer;
  await pass(250);
  assert.deepEqual([state(), gaps], ["live", 1]);
});
