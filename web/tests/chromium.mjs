/**
 * Drives a real Chromium by the Chrome DevTools protocol. It uses the pipe that Chromium offers besides its socket, so the
 * test needs neither a package nor a port.
 */

import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--lang=en-GB",
];
const WAIT_MS = 10_000;

/** Finds a Chromium: the environment's `CHROMIUM`, or one on the path. Returns null if there is none. */
export function findChromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  const candidates = NAMES.flatMap((name) => folders.map((folder) => path.join(folder, name)));
  return candidates.find(isExecutable) ?? null;
}

function isExecutable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Starts a browser with its own profile. */
export async function launch(executable) {
  const profile = await mkdtemp(path.join(tmpdir(), "orders-page-"));
  const child = spawn(executable, [...FLAGS, `--user-data-dir=${profile}`, "about:blank"], {
    env: { ...process.env, TZ: "UTC" },
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  return new Browser(child, profile);
}

/** One browser. It sends commands and hands events to the pages that they are for. */
class Browser {
  #nextId = 1;
  #waiting = new Map();
  #pages = new Map();
  #rest = "";

  constructor(child, profile) {
    this.child = child;
    this.profile = profile;
    child.stdio[4].setEncoding("utf8").on("data", (data) => this.#read(data));
    child.on("exit", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("chromium has ended"));
    });
  }

  send(method, params = {}, sessionId) {
    const id = this.#nextId++;
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject, method }));
  }

  #read(data) {
    const messages = (this.#rest + data).split("\0");
    this.#rest = messages.pop();
    for (const message of messages) this.#handle(JSON.parse(message));
  }

  #handle({ id, result, error, method, params, sessionId }) {
    if (id === undefined) {
      this.#pages.get(sessionId)?.onEvent(method, params);
      return;
    }
    const { resolve, reject, method: asked } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) reject(new Error(`${asked}: ${error.message}`));
    else resolve(result);
  }

  /** Opens a tab with its own empty profile. `scheme` is light or dark. */
  async open(url, { width = 1280, height = 900, scheme = "light" } = {}) {
    const { browserContextId } = await this.send("Target.createBrowserContext");
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId);
    this.#pages.set(sessionId, page);
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await page.send(`${domain}.enable`);
    const { origin } = new URL(url);
    await this.send("Browser.grantPermissions", { browserContextId, origin, permissions: ["clipboardReadWrite", "clipboardSanitizedWrite"] });
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }] });
    await page.go(url);
    return page;
  }

  async close() {
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    if (this.child.exitCode === null) {
      await Promise.race([this.send("Browser.close").catch(() => {}), ended]);
      await ended;
    }
    await rm(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** One tab. `complaints` collects what must not happen: exceptions, violations of the policy, console errors. */
class Page {
  complaints = [];

  constructor(browser, sessionId) {
    this.browser = browser;
    this.sessionId = sessionId;
  }

  send(method, params) {
    return this.browser.send(method, params, this.sessionId);
  }

  onEvent(method, params) {
    if (method === "Runtime.exceptionThrown") this.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled" && params.type === "error") this.complaints.push(`console: ${params.args.map((each) => each.value ?? each.description).join(" ")}`);
    // The browser logs every 4xx and 5xx answer as an error. These are errors of the service, not of the page.
    if (method === "Log.entryAdded" && params.entry.level === "error" && params.entry.source !== "network") this.complaints.push(params.entry.text);
  }

  async go(url) {
    await this.send("Page.navigate", { url });
    await this.until("document.readyState === 'complete'", "the page to load");
  }

  /** Evaluates an expression, and awaits it if it is a promise. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true, userGesture: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits for an expression to be true. */
  async until(expression, what = expression) {
    const end = Date.now() + WAIT_MS;
    while (Date.now() < end) {
      if (await this.value(expression).catch(() => false)) return;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    const text = await this.value("document.body.innerText").catch(() => "(no page)");
    throw new Error(`this did not happen in time: ${what}\nthe page shows:\n${text}`);
  }

  /** Types into the focused element, as a keyboard would. */
  async type(text) {
    await this.send("Input.insertText", { text });
  }

  async press(key, text) {
    const event = { key, code: key, text, windowsVirtualKeyCode: { Enter: 13, Tab: 9, "/": 191 }[key] };
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...event });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  async screenshot(file, most = Infinity) {
    const height = Math.min(await this.value("Math.ceil(document.documentElement.scrollHeight)"), most);
    const width = await this.value("innerWidth");
    const { data } = await this.send("Page.captureScreenshot", { captureBeyondViewport: true, clip: { x: 0, y: 0, width, height, scale: 1 } });
    await writeFile(file, Buffer.from(data, "base64"));
  }
}
