/**
 * Tests the page in a real browser, with a stand-in for the api: `node --test web/tests/`.
 *
 * If `PAGE_URL` is set, one more test runs against a live service that holds the sample order. Without a Chromium the tests
 * are skipped, or they fail if `REQUIRE_BROWSER` is set (as in continuous integration).
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { MARKUP } from "./fake_api.mjs";
import { SAMPLE, click, clickText, focused, scene, shows, skip } from "./scene.mjs";

const stage = scene();
const { open, openAt } = stage;

test("a deep link shows every field of the order", { skip }, async () => {
  const page = await open(`/?uid=${SAMPLE}`);
  await page.until(shows("#order-heading", SAMPLE));
  const text = await page.value(`document.getElementById("order").innerText`);
  for (const expected of [
    "1817 USD", "317 USD", "1500 USD", "0 USD", "453 USD", "WBILMTESTTRACK", "Test Testov", "+9720000000", "Kiryat Mozkin", "wbpay", "Mascaras", "9934930", "ab4219087a764ae0btest",
    "shardkey", "oof_shard", "sm_id", "internal_signature", "delivery_service", "entry", "locale", "from cache, proven 0 s ago", "version 42",
    "26 Nov 2021, 06:22:19 UTC",
  ]) {
    assert.ok(text.includes(expected), `${expected} is missing in:\n${text}`);
  }
});

test("markup in an order is text", { skip }, async () => {
  const page = await open("/?uid=markup");
  await page.until(shows("#order-heading", "markup"));
  await page.value(clickText("Raw JSON"));
  const shownTexts = await page.value(`document.getElementById("order").innerText.split(${JSON.stringify(MARKUP)}).length - 1`);
  assert.ok(shownTexts >= 20, `the page shows the text only ${shownTexts} times`);
  assert.equal(await page.value(`document.querySelectorAll("#order script, #order img, #order b").length`), 0);
  assert.equal(await page.value("globalThis.pwned"), undefined);
  assert.ok(!stage.api.state.seen.some((each) => each.includes("pwned")));
});

test("a pasted id is cleaned and looked up, and the browser can go back from it", { skip }, async () => {
  const page = await open("/");
  await page.until(shows("#newest-body", "order000"));
  await page.press("/", "/");
  assert.equal(await page.value(focused), "query");
  await page.type(` "${SAMPLE}",\u200b `);
  await page.press("Enter", "\r");
  await page.until(shows("#order-heading", SAMPLE));
  assert.equal(await page.value("location.search"), `?uid=${SAMPLE}`);
  assert.equal(await page.value(focused), "order-heading");
  await page.value("history.back()");
  await page.until(`document.getElementById("order").hidden`);
  await page.value("history.forward()");
  await page.until(shows("#order-heading", SAMPLE));
});

test("an address that names no possible id is refused without a request", { skip }, async () => {
  for (const uid of ["..", "a b/c", "<b>", "x".repeat(65)]) {
    const page = await open(`/?uid=${encodeURIComponent(uid)}`);
    await page.until(shows("#order", "not an order id"));
    await page.until(shows("#newest-body", "order000"));
  }
  assert.ok(!stage.api.state.seen.some((each) => each.includes("/order/")));
});

test("an unknown id is reported with a hint and the request id", { skip }, async () => {
  const page = await open("/?uid=nothere");
  await page.until(shows("#order", "No order with this id"));
  assert.ok(await page.value(shows("#order", "req-7f3a")));
});

test("the list pages forward and back, filters, and links to its orders", { skip }, async () => {
  const page = await open("/");
  await page.until(shows("#page-label", "Page 1"));
  await page.value(click("#page-next"));
  await page.until(shows("#newest-body", "order020"));
  await page.value(click("#page-next"));
  await page.until(shows("#page-label", "Page 3 · 10 orders"));
  assert.equal(await page.value(`document.getElementById("page-next").getAttribute("aria-disabled")`), "true");
  await page.value(click("#page-back"));
  await page.until(shows("#newest-body", "order020"));
  await page.value(`document.querySelector("[name=customer_id]").value = " nobody "; document.getElementById("filters").requestSubmit()`);
  await page.until(shows("#newest-body", "No order matches"));
  assert.ok(stage.api.state.seen.some((each) => each.includes("customer_id=nobody")));
  await page.value(`document.getElementById("filters").reset()`);
  await page.until(shows("#newest-body", "order000"));
  await page.value(click("a.uid"));
  await page.until(shows("#order-heading", "order000"));
  await page.value(clickText("Close"));
  await page.until(`document.getElementById("order").hidden`);
  assert.equal(await page.value("document.activeElement.innerText"), "order000");
});

test("an amount is the integer that the producer sent, and the currency's code", { skip }, async () => {
  for (const [uid, total] of [["yen", "1817 JPY"], ["largest", "9007199254740991 EUR"], ["nomoney", "1817 QQQ"]]) {
    const page = await open(`/?uid=${uid}`);
    await page.until(`document.querySelector(".total strong")?.innerText === ${JSON.stringify(total)}`, `${uid} to cost ${total}`);
    // Amounts in the list are shown like that, too.
    await page.until(`[...document.querySelectorAll(".list td:last-child")].some((each) => each.innerText === "3051 USD")`);
    assert.ok(!/[.,]\d+ (USD|JPY|EUR|QQQ)|US\$/.test(await page.value("document.body.innerText")));
  }
});

test("while the database is down the page counts down to the next try, then the order appears", { skip }, async () => {
  stage.api.state.isDown = true;
  const page = await open(`/?uid=${SAMPLE}`);
  await page.until(shows("#order", "Trying again in"));
  await page.until(shows("#health", "down"));
  await page.until(shows("#cache-body", "cached orders are not served"));
  stage.api.state.isDown = false;
  await page.until(shows("#order", "Test Testov"));
});

test("a banner says that the service does not answer, and the page continues by itself", { skip }, async () => {
  const page = await open("/");
  await page.until(shows("#newest-body", "order000"));
  await stage.api.stop();
  await page.value(click("a.uid"));
  await page.until(shows("#offline", "does not answer"));
  await page.until(shows("#order", "cannot be reached"));
  await stage.restart();
  await page.until(`document.getElementById("offline").hidden`);
  await page.until(shows("#order", "Test Testov"));
});

test("a blind cache is shown on the order, even if the browser already had the order", { skip }, async () => {
  const page = await open(`/?uid=${SAMPLE}`);
  await page.until(shows("#order", "from cache"));
  stage.api.state.isBlind = true;
  await page.value(clickText("Read again"));
  await page.until(shows("#order", "from the database: cache is blind"));
});

test("a slow request shows that it is running, and a newer request drops an older one", { skip }, async () => {
  const page = await open("/");
  await page.until(shows("#newest-body", "order000"));
  stage.api.state.delayMs = 600;
  await page.value(click("a[href='/?uid=order001']"));
  await page.until(shows("#order", "Reading the order"));
  stage.api.state.delayMs = 0;
  await page.value(click("a[href='/?uid=order002']"));
  await page.until(shows("#order-heading", "order002"));
  await new Promise((resolve) => setTimeout(resolve, 700)); // The first answer has come by then, and must not be shown.
  assert.ok(await page.value(shows("#order-heading", "order002")));
});

test("id, JSON and curl can be copied", { skip }, async () => {
  const page = await open(`/?uid=${SAMPLE}`);
  await page.until(shows("#order-heading", SAMPLE));
  const clipboard = "navigator.clipboard.readText()";
  await page.value("window.focus()");
  await page.value(clickText("Copy id"));
  await page.until(`${clipboard}.then((text) => text === ${JSON.stringify(SAMPLE)})`);
  await page.value(clickText("Copy curl"));
  await page.until(`${clipboard}.then((text) => text === "curl -sS '${stage.api.address}/order/${SAMPLE}'")`);
  await page.value(clickText("Copy JSON"));
  await page.until(`${clipboard}.then((text) => JSON.parse(text).items.length === 2)`);
});

test("the page links to a readable view of the whole description of the api", { skip }, async () => {
  const page = await open("/");
  await page.value(click('a[href="/api.html"]'));
  await page.until(shows("main", "Order service"));
  const { paths, components } = JSON.parse(await readFile(new URL("../../api/openapi.json", import.meta.url), "utf8"));
  const operations = Object.entries(paths).flatMap(([path, item]) =>
    Object.keys(item).filter((member) => member !== "parameters").map((method) => [item[method].operationId, `${method.toUpperCase()} ${path}`]),
  );
  for (const [id, expected] of operations) {
    const summary = await page.value(`document.querySelector("#${id} > summary").innerText`);
    assert.ok(summary.replace(/\s+/g, " ").startsWith(expected), `${summary} is not ${expected}`);
    const shown = await page.value(`[...document.querySelectorAll("#${id} .answer .badge")].map((each) => each.textContent)`);
    const [method, path] = expected.split(" ");
    assert.deepEqual(shown, Object.keys(paths[path][method.toLowerCase()].responses));
  }
  assert.ok(await page.value(`document.getElementById("put_order").textContent.includes("Needs a bearer token with the scope write")`));
  assert.ok(await page.value(`document.getElementById("list_orders").textContent.includes("OrderPage or SummaryPage")`));
  const dangling = await page.value(`[...document.querySelectorAll('a[href^="#"]')].map((each) => each.getAttribute("href").slice(1)).filter((id) => !document.getElementById(id))`);
  assert.deepEqual(dangling, []);
  const text = await page.value(`document.querySelector("main").textContent`);
  for (const code of components.schemas.Problem.properties.code.enum) assert.ok(text.includes(code), `${code} is missing`);
  await page.value(`location.hash = "schema-Problem"`);
  await page.until(`document.getElementById("schema-Problem").open`);
  assert.ok(await page.value(shows("#schema-Problem", "request_id")));
});

test("a description that cannot be loaded is reported", { skip }, async () => {
  const page = await open("/");
  await page.send("Network.setBlockedURLs", { urls: ["*/openapi.json"] });
  await page.go(`${stage.api.address}/api.html`);
  await page.until(shows("main", "could not be loaded"));
});

test("nothing sticks out sideways at 360 pixels", { skip }, async () => {
  for (const path of ["/", `/?uid=${SAMPLE}`, "/?uid=markup", "/?uid=nothere"]) {
    const page = await open(path, { width: 360, height: 740 });
    await page.until(shows("#newest-body", "order000"));
    await page.until(path === "/" ? "true" : `document.getElementById("order").innerText.length > 40`);
    assert.ok(await page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path);
  }
  const page = await open("/api.html", { width: 360, height: 740 });
  await page.until(shows("main", "Order service"));
  await page.value(`for (const each of document.querySelectorAll("details")) each.open = true`);
  assert.ok(await page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"));
});

test("the live service shows the sample order", { skip: skip || (process.env.PAGE_URL ? false : "PAGE_URL is not set") }, async () => {
  const page = await openAt(`${process.env.PAGE_URL}/?uid=${SAMPLE}`);
  await page.until(shows("#order", "Test Testov"));
  await page.until(shows("#newest-body", SAMPLE));
  await page.until(shows("#cache-body", "Hit ratio"));
});
