/** Shows the cache and the health of the service, and warms the cache up. */

import { denied } from "./access.js";
import { asFailure, request } from "./client.js";
import { announce, byId, capitalised, element, fields, onSubmit, shown } from "./dom.js";
import { bytes, duration, integer, moment, percent, refreshAges } from "./format.js";
import { askForToken } from "./token_form.js";
import { View, problemBox } from "./view.js";

const POLL_MS = 5000; // As long as the cache's lease, so every state that matters is seen at least once.

const LISTENER_STATES = {
  starting: ["warn", "Starting. The service waits for the database."],
  connecting: ["warn", "Connecting to the database's event channel. Reads go to the database, so nothing is stale."],
  subscribing: ["warn", "Subscribing to events. Reads go to the database, so nothing is stale."],
  syncing: ["warn", "Comparing the cache with the database. An order is served from the cache once it has been compared."],
  live: ["ok", "Live. The cache hears every change."],
  suspect: ["bad", "The event channel has been silent for longer than the lease. Reads go to the database, and cached orders are not served."],
};

const warmupView = new View(byId("warmup-result"), "Warming up…");

function showStats(stats) {
  const listener = stats.listener ?? {};
  const [level, words] = LISTENER_STATES[listener.state] ?? ["unknown", `Unknown state "${listener.state ?? "none"}".`];
  const state = element("p", { className: "state" }, element("span", { className: "dot", "aria-hidden": "true" }), words);
  state.dataset.level = level;
  const loads = stats.loads ?? {};
  const evictions = stats.evictions ?? {};
  const audit = stats.audit ?? {};
  byId("cache-body").replaceChildren(
    state,
    gauge("Hit ratio", stats.hit_ratio ?? 0, 1, typeof stats.hit_ratio === "number" ? percent(stats.hit_ratio) : "no lookups yet"),
    gauge("Orders held", stats.size, stats.capacity, `${integer(stats.size)} of ${integer(stats.capacity)}`),
    counters("Lookups", { hits: stats.hits, "negative hits": stats.negative_hits, misses: stats.misses, bypasses: stats.bypasses }),
    counters("Loads", loads),
    counters("Evictions", evictions),
    counters("Listener", {
      "last proof": element("span", {}, Number.isFinite(listener.proof_age_ms) ? `${duration(listener.proof_age_ms)} ago` : "none"),
      lease: element("span", {}, duration(listener.lease_ms)),
      events: listener.events,
      reconnects: listener.reconnects,
      malformed: listener.malformed,
      "time blind": element("span", {}, duration((listener.blind_seconds_total ?? NaN) * 1000)),
    }),
    counters("More", {
      "known absent": stats.negative_size,
      memory: element("span", {}, bytes(stats.weight_bytes)),
      audited: audit.checked,
      mismatches: audit.mismatches,
      since: moment(stats.started_at, { compact: true }),
    }),
  );
}

/** Shows a value as a bar and in words. */
function gauge(label, value, most, words) {
  const bar = element("progress", { max: most > 0 ? most : 1, value: Number.isFinite(value) ? Math.min(value, most) : 0, "aria-label": label });
  return element("div", { className: "gauge" }, element("span", {}, label), element("strong", {}, words), bar);
}

function counters(title, values) {
  const pairs = Object.entries(values).map(([name, value]) => [name.replaceAll("_", " "), typeof value === "object" && value !== null ? value : integer(value)]);
  return element("section", { className: "counters" }, element("h3", {}, title), fields(pairs));
}

async function warmUp() {
  const load = (signal) => request("/api/v1/cache/warmup", { method: "POST", signal });
  const isDone = await warmupView.run(load, ({ body }) => showWarmup(body), { explain: problemBoxOfWarmup });
  if (isDone) poll();
}

function showWarmup({ loaded, duration_ms: durationMs }) {
  const text = `Loaded ${integer(loaded)} orders in ${duration(durationMs)}.`;
  byId("warmup-result").replaceChildren(element("p", { className: "done" }, text));
  announce(text);
}

function problemBoxOfWarmup(failure) {
  const hints = {
    writes_disabled: "To allow this, give the service a token with the scope operate.",
    forbidden_origin: "Without a token this works only on the machine itself, under the name localhost.",
  };
  const box = problemBox(failure, { hint: hints[failure.code] });
  if (failure.code === "insufficient_scope") {
    const another = element("button", { type: "button", onclick: () => askForToken() }, "Use another token");
    box.append(element("p", { className: "actions" }, another));
  }
  return box;
}

const HEALTH_LEVELS = { ok: "ok", degraded: "warn", down: "bad" };

function showHealth(level, text) {
  byId("health").dataset.level = level;
  byId("health-text").textContent = text;
}

function checkWords(check) {
  if (check === null || typeof check !== "object") return shown(check);
  const part = ([name, value]) => {
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    if (name === "status" || name === "state") return text;
    return name.endsWith("_ms") ? `${name.slice(0, -3).replaceAll("_", " ")} ${duration(value)}` : `${name.replaceAll("_", " ")} ${text}`;
  };
  const { status, state, ...rest } = check; // The most important values come first.
  return Object.entries({ status, state, ...rest }).filter(([, value]) => value !== undefined).map(part).join(", ");
}

/** Lists whatever the checks contain, because the service decides on their names and shape. */
function showChecks({ status, checks = {} }) {
  showHealth(HEALTH_LEVELS[status] ?? "unknown", shown(status));
  const pairs = Object.entries(checks).map(([name, check]) => [name.replaceAll("_", " "), checkWords(check)]);
  byId("checks-body").replaceChildren(pairs.length > 0 ? fields(pairs) : element("p", { className: "muted" }, `The status of the service is ${status}.`));
}

async function loadHealth() {
  try {
    const { body } = await request("/health", { accept: [503], cache: "no-store", isOpen: true });
    showChecks(body);
  } catch (error) {
    const failure = asFailure(error);
    showHealth("bad", failure.status === 0 ? "no answer" : "unknown");
    byId("checks-body").replaceChildren(element("p", { className: "muted" }, capitalised(failure.message)));
  }
}

/** Loads the statistics. It announces no failure, because a failure every five seconds must not be read out each time. */
async function loadStats() {
  if (denied() !== null) {
    showNoStats();
    return;
  }
  try {
    const { body } = await request("/api/v1/cache/stats", { cache: "no-store" });
    showStats(body);
  } catch (error) {
    const body = byId("cache-body");
    if (denied() !== null) showNoStats();
    else if (!body.contains(document.activeElement)) body.replaceChildren(problemBox(asFailure(error), { title: "No statistics" }));
  }
}

function showNoStats() {
  byId("cache-body").replaceChildren(element("p", { className: "muted" }, "Not shown, because the service refuses reads."));
}

let pollTimer;

/** Loads statistics and health, and repeats this after a while. A hidden tab loads nothing. */
export async function poll() {
  clearTimeout(pollTimer);
  if (document.hidden) return;
  await Promise.all([loadStats(), loadHealth()]);
  refreshAges();
  clearTimeout(pollTimer); // Another call may have set it meanwhile.
  pollTimer = setTimeout(poll, POLL_MS);
}

export function startStatus() {
  onSubmit("warmup", warmUp);
  poll();
}
