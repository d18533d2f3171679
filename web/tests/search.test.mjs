/** Tests in a real browser that the search box finds orders by whatever people have at hand. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { makeOrder } from "./fake_api.mjs";
import { SAMPLE, click, clickText, isHidden, scene, shows, skip } from "./scene.mjs";

const stage = scene();

/** Opens the page of a service that also has an order with other values in every field that can be searched. */
async function openWithOther() {
  const other = makeOrder("8005551234x");
  Object.assign(other, { track_number: "ZZTRACK1", customer_id: "Customer 7" });
  Object.assign(other.delivery, { phone: "+7 (912) 345-67-89", email: "Somebody@Example.com" });
  stage.api.orders.push(other);
  const page = await stage.open("/");
  await page.until(shows("#newest-body", "order000"));
  return page;
}

async function find(page, text) {
  await page.value(`document.getElementById("query").focus(); document.getElementById("query").select()`);
  await page.type(text);
  await page.press("Enter", "\r");
}

test("an order is found by each kind of value, and the page says why", { skip }, async () => {
  const page = await openWithOther();
  for (const [typed, why] of [
    ["7 912 345 67 89", "Phone number is 7 912 345 67 89"],
    ["somebody@example.com", "E-mail address is somebody@example.com"],
    ["ZZTRACK1", "Track number begins with ZZTRACK1"],
    ["ZZT", "Track number begins with ZZT"],
    ["«Customer 7»", "Customer id is Customer 7"],
    ["80055", "Order id begins with 80055"],
  ]) {
    await find(page, typed);
    await page.until(`${shows("#search", why)} && document.querySelectorAll("#search a.uid").length === 1 && ${shows("#search a.uid", "8005551234x")}`, typed);
  }
  await page.value(click("#search a.uid"));
  await page.until(shows("#order", "Somebody@Example.com"));
  await page.value(click("#order .panel-head button"));
  await page.until(`document.activeElement.innerText === "8005551234x"`);
});

test("what is typed gets into no address, except an order's id", { skip }, async () => {
  const page = await openWithOther();
  for (const typed of ["+7 (912) 345-67-89", "79123456789", "somebody@example.com"]) {
    await find(page, typed);
    await page.until(shows("#search-body h3", typed));
    assert.equal(await page.value("location.search"), "");
  }
  const { seen, bodies } = stage.api.state;
  assert.ok(!seen.some((each) => /912|somebody/i.test(each)), seen.join("\n"));
  assert.deepEqual(bodies[0], { phone: "+7 (912) 345-67-89", limit: 10, view: "summary" });
});

test("an order's whole id opens the order", { skip }, async () => {
  const page = await openWithOther();
  await find(page, SAMPLE);
  await page.until(shows("#order-heading", SAMPLE));
  assert.ok(await page.value(isHidden("search")));
  assert.equal(stage.api.state.bodies.length, 0);
});

test("many matches come in parts", { skip }, async () => {
  const page = await openWithOther();
  await find(page, "order0");
  await page.until(`document.querySelectorAll("#search a.uid").length === 10`);
  await page.value(clickText("Show more"));
  await page.until(`document.querySelectorAll("#search a.uid").length === 20`);
  assert.equal(await page.value("document.activeElement.innerText"), "order010");
});

test("a search without a match says what was looked for", { skip }, async () => {
  const page = await openWithOther();
  await find(page, "12345678");
  await page.until(shows("#search", "No order matches 12345678"));
  assert.ok(await page.value(shows("#search", "Searched by phone number, customer id, order id and track number")));
  await find(page, " ,\u200b' ");
  await page.until(shows("#query-error", "Enter an order id"));
});

test("a search waits for the database and then shows what it found", { skip }, async () => {
  const page = await openWithOther();
  stage.api.state.isDown = true;
  await find(page, "somebody@example.com");
  await page.until(shows("#search", "Trying again in"));
  stage.api.state.isDown = false;
  await page.until(shows("#search a.uid", "8005551234x"));
});
