/** Tests in a real browser what the page does where the service needs a token. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SAMPLE, click, clickText, focused, isHidden, scene, shows, skip } from "./scene.mjs";

const stage = scene();
const TOKENS = { "read-0123456789abcdef": ["read"], "all-0123456789abcdef": ["read", "write", "operate"], "write-0123456789abcdef": ["write"] };

/** Types a token as a keyboard would, and sends the form. */
async function enter(page, token) {
  await page.value(`document.getElementById("token").value = ""; document.getElementById("token").focus()`);
  await page.type(token);
  await page.press("Enter", "\r");
}

async function openClosed(path = "/") {
  stage.api.state.tokens = { ...TOKENS };
  const page = await stage.open(path);
  await page.until(`!${isHidden("access")}`);
  assert.ok(await page.value(shows("#access", "This server needs a token")));
  return page;
}

test("the page asks for a token, says that one is refused, and reads everything with one that is accepted", { skip }, async () => {
  const page = await openClosed(`/?uid=${SAMPLE}`);
  await page.until(shows("#order", "Enter it in the form"));
  await page.until(shows("#newest-body", "Enter it in the form"));
  await page.until(shows("#feed", "Live updates have stopped"));
  assert.equal(await page.value(focused), "token");
  await enter(page, "wrong-0123456789abcdef");
  await page.until(shows("#access", "The server refuses this token"));
  await enter(page, "write-0123456789abcdef");
  await page.until(shows("#access", "his needs a token with the scope read"));
  await enter(page, "two words");
  await page.until(shows("#access", "This cannot be a token"));
  await enter(page, "read-0123456789abcdef");
  await page.until(isHidden("access"));
  assert.equal(await page.value(focused), "main");
  await page.until(shows("#order", "Test Testov"));
  await page.until(shows("#newest-body", "order000"));
  await page.until(shows("#feed", "Live updates"));
  await page.until(shows("#cache-body", "97.3"));
  stage.api.tell("order", { op: "upsert", order_uids: [SAMPLE] });
  await page.until(shows("#order-again", "has changed"));
});

test("a token is in memory only, and in no address", { skip }, async () => {
  const page = await openClosed();
  await enter(page, "read-0123456789abcdef");
  await page.until(shows("#newest-body", "order000"));
  assert.equal(await page.value("localStorage.length + sessionStorage.length + document.cookie.length"), 0);
  assert.equal(await page.value("indexedDB.databases().then((all) => all.length)"), 0);
  assert.ok(!(await page.value("document.documentElement.outerHTML + location.href")).includes("0123456789abcdef"));
  assert.equal(await page.value(`document.getElementById("token").value`), "");
  assert.ok(!stage.api.state.seen.some((each) => each.includes("0123456789abcdef")));
  await page.go(`${stage.api.address}/`);
  await page.until(`!${isHidden("access")}`);
});

test("a forgotten token takes along what was read with it, at once", { skip }, async () => {
  const page = await openClosed(`/?uid=${SAMPLE}`);
  await enter(page, "read-0123456789abcdef");
  await page.until(shows("#order", "Test Testov"));
  await page.until(shows("#newest-body", "order000"));
  stage.api.state.delayMs = 500;
  await page.value(click("#token-forget"));
  assert.ok(!/Test Testov|order000/.test(await page.value(`document.getElementById("main").textContent`)));
  await page.until(`!${isHidden("access")}`);
  assert.ok(await page.value(isHidden("token-state")));
});

test("a withdrawn token is asked for again", { skip }, async () => {
  const page = await openClosed();
  await enter(page, "read-0123456789abcdef");
  await page.until(shows("#newest-body", "order000"));
  delete stage.api.state.tokens["read-0123456789abcdef"];
  for (const each of stage.api.state.followers.splice(0)) each.end();
  await page.until(shows("#access", "The server refuses this token"));
  await page.until(shows("#feed", "Live updates have stopped"));
  assert.ok(await page.value(isHidden("token-state")), "the token is not in use any longer");
  await enter(page, "all-0123456789abcdef");
  await page.until(shows("#feed", "Live updates"));
  await page.until(isHidden("access"));
});

test("warm-up says that the token lacks the scope, and works with another token", { skip }, async () => {
  const page = await openClosed();
  await enter(page, "read-0123456789abcdef");
  await page.until(shows("#newest-body", "order000"));
  await page.value(click("#warmup button"));
  await page.until(shows("#warmup-result", "his needs a token with the scope operate"));
  assert.ok(await page.value(shows("#newest-body", "order000")), "reading goes on");
  await page.value(clickText("Use another token"));
  await enter(page, "all-0123456789abcdef");
  await page.until(isHidden("access"));
  await page.value(click("#warmup button"));
  await page.until(shows("#warmup-result", "Loaded 8,123 orders in 271 ms"));
});

test("the copied command names a variable in place of the token", { skip }, async () => {
  const page = await openClosed(`/?uid=${SAMPLE}`);
  await enter(page, "read-0123456789abcdef");
  await page.until(shows("#order", "Test Testov"));
  await page.value("window.focus()");
  await page.value(clickText("Copy curl"));
  const command = `curl -sS -H "Authorization: Bearer $API_TOKEN" '${stage.api.address}/order/${SAMPLE}'`;
  await page.until(`navigator.clipboard.readText().then((text) => text === ${JSON.stringify(command)})`);
});
