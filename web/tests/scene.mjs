/** What the tests in a browser share: one browser for each file, and a stand-in for the api for each test. */

import assert from "node:assert/strict";
import http from "node:http";
import { after, afterEach, before, beforeEach } from "node:test";
import { findChromium, launch } from "./chromium.mjs";
import { startFakeApi } from "./fake_api.mjs";

export const SAMPLE = "b563feb7b2b84b6test";

const executable = findChromium();
const MISSING = "no chromium on the path: apt-get install chromium, or set CHROMIUM";
if (!executable && process.env.REQUIRE_BROWSER) throw new Error(MISSING);
export const skip = executable ? false : MISSING;

// Expressions for `Page.value` and `Page.until`.
export const shows = (selector, text) => `document.querySelector(${JSON.stringify(selector)})?.innerText.includes(${JSON.stringify(text)})`;
export const click = (selector) => `document.querySelector(${JSON.stringify(selector)}).click()`;
export const clickText = (text) => `[...document.querySelectorAll("button")].find((each) => each.innerText.startsWith(${JSON.stringify(text)})).click()`;
export const isHidden = (id) => `document.getElementById(${JSON.stringify(id)}).hidden`;
export const focused = `document.activeElement.id || document.activeElement.className`;

/** Sets the hooks of a test file. After each test no page may have thrown, logged an error or violated its policy. */
export function scene() {
  let browser, pages, proxy;
  const stage = {
    api: null,
    open: (path, options) => stage.openAt(stage.api.address + path, options),
    async openAt(url, options) {
      const page = await browser.open(url, options);
      pages.push(page);
      return page;
    },
    /** Starts the api again at the same address, as a new process with the same orders. */
    async restart(options) {
      const port = Number(new URL(stage.api.address).port);
      stage.api = await startFakeApi({ port, orders: stage.api.orders, ...options });
    },
    /** Stands in, at the api's address, for a proxy whose upstream is away: it answers everything with this status. */
    async replaceByProxy(status, headers) {
      const seen = [];
      const server = http.createServer((request, response) => {
        seen.push(request.url);
        response.writeHead(status, { "Content-Type": "text/html", ...headers });
        response.end("<h1>no upstream</h1>");
      });
      const { port } = new URL(stage.api.address);
      await stage.api.stop();
      await new Promise((resolve) => server.listen(Number(port), "127.0.0.1", resolve));
      proxy = { seen, stop: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }) };
      return proxy;
    },
  };
  before(async () => {
    if (!skip) browser = await launch(executable);
  });
  after(() => browser?.close());
  beforeEach(async () => {
    pages = [];
    stage.api = await startFakeApi();
  });
  afterEach(async () => {
    await proxy?.stop();
    proxy = null;
    await stage.api.stop();
    for (const page of pages) {
      const complaints = page.complaints.splice(0);
      await page.send("Page.close");
      assert.deepEqual(complaints, [], "the page threw an exception, logged an error or violated its policy");
    }
  });
  return stage;
}

/** Waits for something outside of the page. */
export async function until(condition) {
  for (const end = Date.now() + 20_000; !condition(); ) {
    assert.ok(Date.now() < end, `this did not happen in time: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
