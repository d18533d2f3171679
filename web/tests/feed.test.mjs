/** Tests in a real browser that the page stays fresh: it follows the live feed, and comes back to it after every interruption. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SAMPLE, click, scene, shows, skip, until } from "./scene.mjs";

const stage = scene();
const { open } = stage;

const isLive = `document.getElementById("feed").dataset.state === "live"`;
const feedRequests = () => stage.api.state.seen.filter((each) => each.includes("/events")).length;

async function openLive(path = `/?uid=${SAMPLE}`) {
  const page = await open(path);
  await page.until(isLive);
  await page.until(shows("#newest-body", "order000"));
  return page;
}

test("the page says which orders have changed elsewhere, and nothing moves by itself", { skip }, async () => {
  const page = await openLive();
  await page.until(shows("#order-heading", SAMPLE));
  const { seen } = stage.api.state;
  const readBefore = seen.filter((each) => each.includes("/order")).length;
  stage.api.tell("order", { op: "upsert", order_uids: ["order000", "order001"] });
  await page.until(shows("#newest-refresh", "Refresh (2 changed)"));
  await page.until(`document.querySelectorAll(".changed").length === 2`);
  assert.ok(await page.value(shows("tr[data-uid=order001]", "changed")));
  assert.equal(await page.value(`document.getElementById("order-again").innerText`), "Read again");
  stage.api.tell("order", { op: "delete", order_uids: [SAMPLE, "order001"] });
  await page.until(shows("#newest-refresh", "Refresh (3 changed)"));
  await page.until(shows("#order-again", "Read again (has changed)"));
  assert.equal(seen.filter((each) => each.includes("/order")).length, readBefore);
  await page.value(click("#newest-refresh"));
  await page.until(`document.getElementById("newest-refresh").innerText === "Refresh" && !document.querySelector(".changed")`);
  await page.value(click("#order-again"));
  await page.until(`document.getElementById("order-again").innerText === "Read again"`);
});

test("after a resync the order and the list are read again, and the focus stays where it is", { skip }, async () => {
  const page = await openLive();
  await page.until(shows("#order", "1817 USD"));
  await page.value(`document.querySelector("a.uid[href='/?uid=order001']").focus()`);
  stage.api.orders.find((each) => each.order_uid === SAMPLE).payment.amount = 4242;
  stage.api.orders.find((each) => each.order_uid === "order000").payment.amount = 4343;
  stage.api.tell("resync", {});
  await page.until(shows("#order", "4242 USD"));
  await page.until(shows("#newest-body", "4343 USD"));
  assert.equal(await page.value("document.activeElement.innerText"), "order001");
});

// After this many attempts the waits are the longest.
for (const [what, status, headers, attempts] of [
  ["a 502 of a proxy", 502, {}, 5],
  ["a 503 of a proxy that asks for five minutes", 503, { "Retry-After": "300" }, 2],
]) {
  test(`the page is fresh within 10 s after the api was stopped, replaced by ${what}, and is back`, { skip }, async () => {
    const page = await openLive();
    await stage.api.stop();
    await page.until(shows("#feed", "Reconnecting in"));
    const proxy = await stage.replaceByProxy(status, headers);
    await page.until(`document.getElementById("feed").title.includes("${status}")`);
    await until(() => proxy.seen.filter((each) => each.includes("/events")).length >= attempts);
    await page.until(shows("#offline", "may be out of date"));
    await proxy.stop();
    stage.api.orders.find((each) => each.order_uid === SAMPLE).payment.amount = 4242;
    stage.api.orders.find((each) => each.order_uid === "order000").payment.amount = 4343;
    await stage.restart();
    await page.until(shows("#order", "4242 USD")); // `until` waits for 10 s.
    await page.until(shows("#newest-body", "4343 USD"));
    await page.until(isLive);
    assert.ok(await page.value(`document.getElementById("offline").hidden`));
  });
}

test("a connection that ends is resumed where it was, without reading anything again", { skip }, async () => {
  const page = await openLive();
  stage.api.tell("order", { op: "upsert", order_uids: ["order000"] });
  await page.until(shows("#newest-refresh", "1 changed"));
  const { state } = stage.api;
  const readBefore = state.seen.filter((each) => each.includes("/order")).length;
  for (const each of state.followers.splice(0)) each.destroy();
  await page.until(isLive);
  await until(() => state.followers.length > 0);
  assert.equal(state.lastEventIds.at(-1), `${state.process}-1`);
  stage.api.tell("order", { op: "upsert", order_uids: ["order001"] });
  await page.until(shows("#newest-refresh", "2 changed"));
  assert.equal(state.seen.filter((each) => each.includes("/order")).length, readBefore);
});

test("if the feed was not live when the page read, the page reads again as soon as the feed is live", { skip }, async () => {
  stage.api.state.feedAnswer = (request, response) => response.writeHead(503, { "Retry-After": "1" }).end();
  const page = await open(`/?uid=${SAMPLE}`);
  await page.until(shows("#order", "1817 USD"));
  stage.api.orders.find((each) => each.order_uid === SAMPLE).payment.amount = 4242; // Nobody is told of this change.
  stage.api.state.feedAnswer = null;
  await page.until(shows("#order", "4242 USD"));
});

test("an answer that is no stream of events does not stop the page", { skip }, async () => {
  stage.api.state.feedAnswer = (request, response) => response.writeHead(200, { "Content-Type": "text/html" }).end("log in, please");
  const page = await open("/");
  await page.until(shows("#feed", "Reconnecting in"));
  stage.api.state.feedAnswer = null;
  await page.until(isLive);
});

test("a 403 stops the feed and shows why", { skip }, async () => {
  stage.api.state.denial = ["reads_disabled", "reads are open only to people at the machine: set API_TOKENS_FILE"];
  const page = await open("/");
  await page.until(shows("#feed", "Live updates have stopped"));
  await page.until(shows("#newest-body", "eads are open only to people at the machine: set API_TOKENS_FILE"));
  assert.ok(await page.value(`document.getElementById("access").hidden`), "a token would not help");
  const before = feedRequests();
  stage.api.state.denial = null;
  await page.value(`[...document.querySelectorAll("#newest button")].find((each) => each.innerText === "Try again").click()`);
  await page.until(isLive);
  assert.equal(feedRequests(), before + 1);
});
