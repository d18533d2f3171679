/**
 * A stand-in for the api. It serves the page with the same Content-Security-Policy and answers with made-up orders.
 *
 * The browser test beside it uses it. It also allows work on the page without a database: `node web/tests/fake_api.mjs 8090`.
 * It does not check the rules of the real service; the api's own tests do.
 */

import { readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { fileURLToPath } from "node:url";

const WEB = new URL("../", import.meta.url);
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; " +
  "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const ASSETS = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/style.css": ["style.css", "text/css; charset=utf-8"],
  "/app.js": ["app.js", "text/javascript; charset=utf-8"],
  "/api.html": ["api.html", "text/html; charset=utf-8"],
  "/api.js": ["api.js", "text/javascript; charset=utf-8"],
  "/favicon.svg": ["favicon.svg", "image/svg+xml"],
  "/openapi.json": ["../api/openapi.json", "application/json"],
  ...Object.fromEntries(readdirSync(new URL("scripts/", WEB)).map((file) => [`/scripts/${file}`, [`scripts/${file}`, "text/javascript; charset=utf-8"]])),
};
/** The routes that need no token. */
const OPEN = ["/health", ...Object.keys(ASSETS)];

/** A text that must stay text. If it were parsed, each part would run, load something or break out of an attribute. */
export const MARKUP = `"><script>globalThis.pwned=1</script><img src=/pwned onerror="globalThis.pwned=1"><b>bold</b>`;

/** Makes a valid order. If `fill` is given, every text field contains it, except the ids and the currency. */
export function makeOrder(uid, { fill, currency = "USD", amount = 1817, items = 2, createdAt = "2021-11-26T06:22:19Z" } = {}) {
  const text = (usual) => fill ?? usual;
  return {
    order_uid: uid,
    track_number: text("WBILMTESTTRACK"),
    entry: text("WBIL"),
    delivery: {
      name: text("Test Testov"), phone: text("+9720000000"), zip: text("2639809"), city: text("Kiryat Mozkin"),
      address: text("Ploshad Mira 15"), region: text("Kraiot"), email: text("test@gmail.com"),
    },
    payment: {
      transaction: text(uid), request_id: text(""), currency, provider: text("wbpay"), amount, payment_dt: 1637907727,
      bank: text("alpha"), delivery_cost: 1500, goods_total: 317, custom_fee: 0,
    },
    items: Array.from({ length: items }, (_, index) => ({
      chrt_id: 9934930 + index, track_number: text("WBILMTESTTRACK"), price: 453, rid: text("ab4219087a764ae0btest"),
      name: text(index % 2 ? "Long-lasting waterproof eyeliner" : "Mascaras"), sale: 30, size: text("0"), total_price: 317,
      nm_id: 2389212, brand: text("Vivienne Sabo"), status: 202,
    })),
    locale: text("en"), internal_signature: text(""), customer_id: text("test"), delivery_service: text("meest"),
    shardkey: text("9"), sm_id: 99, date_created: createdAt, oof_shard: text("1"),
  };
}

const STATS = {
  size: 8123, capacity: 10000, negative_size: 12, weight_bytes: 18345110, hits: 91234, negative_hits: 40, misses: 2501,
  bypasses: 17, hit_ratio: 0.9731,
  loads: { started: 2530, succeeded: 2490, not_found: 38, failed: 2, coalesced: 311, discarded: 5 },
  evictions: { capacity: 0, event: 812, resync: 3, audit: 0 },
  listener: {
    state: "live", epoch: 4, reconnects: 3, proof_age_ms: 412, lease_ms: 5000, events: 912, malformed: 0, blind_seconds_total: 2.1,
  },
  audit: { checked: 5120, mismatches: 0 },
  started_at: "2026-05-04T08:00:00Z",
};

/** Starts the server. Tests change `state` to simulate faults. `state.seen` lists the requests, `state.bodies` what was sent. */
export async function startFakeApi({ port = 0, orders = makeOrders(), state: given = {} } = {}) {
  const state = {
    seen: [], bodies: [], isDown: false, isBlind: false, delayMs: 0, health: null, followers: [], lastEventIds: [], process: Math.random().toString(36).slice(2),
    tokens: null, // If set: the scopes of each token.
    denial: null, // If set: `[code, detail]` of the 403 that answers reads.
    feedAnswer: null, // If set: answers the feed in place of a stream.
    ...given,
  };
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    state.seen.push(`${request.method} ${request.url}`);
    const answer = () => route(request, response, url, { orders, state });
    if (state.delayMs > 0 && !(url.pathname in ASSETS)) setTimeout(answer, state.delayMs);
    else answer();
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  const address = `http://127.0.0.1:${server.address().port}`;
  let sequence = 0;
  const tell = (event, data) => {
    sequence += 1;
    state.followers.forEach((each) => each.write(`id: ${state.process}-${sequence}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
  };
  return { address, orders, state, tell, stop: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }) };
}

function makeOrders() {
  const orders = Array.from({ length: 45 }, (_, index) =>
    makeOrder(`order${String(index).padStart(3, "0")}`, { amount: 1817 + index * 1234, createdAt: new Date(Date.UTC(2026, 4, 4, 9, 0, -index * 97)).toISOString() }),
  );
  return orders.concat(
    makeOrder("b563feb7b2b84b6test"),
    makeOrder("markup", { fill: MARKUP }),
    makeOrder("yen", { currency: "JPY", amount: 1817 }),
    makeOrder("largest", { currency: "EUR", amount: 9007199254740991 }),
    makeOrder("nomoney", { currency: "QQQ", amount: 1817 }),
  );
}

async function route(request, response, url, { orders, state }) {
  const path = url.pathname;
  const needed = path === "/api/v1/cache/warmup" ? "operate" : "read";
  const body = path === "/api/v1/orders/search" ? JSON.parse(await bodyOf(request)) : null;
  if (body) state.bodies.push(body);
  if (path in ASSETS) {
    const [file, type] = ASSETS[path];
    response.writeHead(200, { "Content-Type": type, "Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff" });
    response.end(await readFile(new URL(file, WEB)));
  } else if (!OPEN.includes(path) && isRefused(request, response, needed, state)) {
    // It is answered.
  } else if (path === "/api/v1/events") {
    if (state.feedAnswer) state.feedAnswer(request, response);
    else sendFeed(request, response, state);
  } else if (path === "/health") {
    const healthy = { status: "ok", checks: { database: { status: "ok" }, listener: { state: "live", proof_age_ms: 412 } } };
    const report = state.isDown ? { status: "down", checks: { database: { status: "down" } } } : (state.health ?? healthy);
    sendJson(response, state.isDown ? 503 : 200, report);
  } else if (path === "/api/v1/cache/stats") {
    sendJson(response, 200, state.isDown || state.isBlind ? { ...STATS, listener: { ...STATS.listener, state: "suspect" } } : STATS);
  } else if (state.isDown) {
    problem(response, 503, "database_unavailable", "the database cannot be reached", { "Retry-After": "2" });
  } else if (path.startsWith("/order/")) {
    sendOrder(request, response, decodeURIComponent(path.slice("/order/".length)), { orders, state });
  } else if (path === "/api/v1/orders") {
    sendPage(response, Object.fromEntries(url.searchParams), orders);
  } else if (path === "/api/v1/orders/search" && request.method === "POST") {
    sendPage(response, body, orders);
  } else if (path === "/api/v1/cache/warmup" && request.method === "POST") {
    sendJson(response, 200, { loaded: 8123, duration_ms: 271 });
  } else {
    problem(response, 404, "no_such_endpoint", "there is nothing here");
  }
}

async function bodyOf(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** Answers a request without the authority that it needs, as section 3 of RFC 6750 says. */
function isRefused(request, response, needed, { tokens, denial }) {
  if (tokens === null) {
    if (denial) problem(response, 403, ...denial);
    return denial !== null;
  }
  const token = request.headers.authorization?.replace(/^Bearer /, "");
  if (token === undefined) problem(response, 401, "unauthorized", "a bearer token is needed", { "WWW-Authenticate": "Bearer" });
  else if (!(token in tokens)) problem(response, 401, "unauthorized", "this bearer token is not valid", { "WWW-Authenticate": 'Bearer error="invalid_token"' });
  else if (!tokens[token].includes(needed)) problem(response, 403, "insufficient_scope", `this needs a token with the scope ${needed}`);
  else return false;
  return true;
}

function sendFeed(request, response, state) {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const last = request.headers["last-event-id"];
  if (last === undefined) response.write(`retry: 3000\nid: ${state.process}-0\n\n`);
  else if (last.startsWith(`${state.process}-`)) response.write("retry: 3000\n\n");
  else response.write(`retry: 3000\nid: ${state.process}-0\nevent: resync\ndata: {}\n\n`);
  state.followers.push(response);
  state.lastEventIds.push(last);
}

function sendOrder(request, response, uid, { orders, state }) {
  const order = orders.find((each) => each.order_uid === uid);
  if (!order) {
    problem(response, 404, "order_not_found", `there is no order ${uid}`);
    return;
  }
  const source = state.isBlind ? { "Cache-Status": "orders; fwd=bypass; detail=blind" } : { "Cache-Status": "orders; hit", Age: "0" };
  const headers = { ETag: etagOf(order), "Cache-Control": "private, no-cache", ...source };
  if (request.headers["if-none-match"] === headers.ETag) {
    response.writeHead(304, headers).end();
    return;
  }
  sendJson(response, 200, order, headers);
}

const digits = (text) => text.replace(/\D/g, "");
/** How each filter compares. */
const FILTERS = {
  customer_id: (order, value) => order.customer_id === value,
  track_number: (order, value) => order.track_number === value,
  order_uid_prefix: (order, value) => order.order_uid.startsWith(value),
  track_number_prefix: (order, value) => order.track_number.startsWith(value),
  phone: (order, value) => digits(order.delivery.phone) === digits(value),
  email: (order, value) => order.delivery.email.toLowerCase() === value.toLowerCase(),
};

function sendPage(response, { view, limit = 50, cursor = 0, ...filters }, orders) {
  const unknown = Object.keys(filters).find((name) => !(name in FILTERS));
  if (unknown) {
    problem(response, 400, "unknown_parameter", `there is no parameter ${unknown}`);
    return;
  }
  const short = ["order_uid_prefix", "track_number_prefix"].find((name) => filters[name]?.length < 3);
  if (short) {
    problem(response, 400, "invalid_parameter", `${short} needs at least 3 characters`);
    return;
  }
  const found = orders.filter((order) => Object.entries(filters).every(([name, value]) => FILTERS[name](order, value)));
  const end = Number(cursor) + Number(limit);
  const page = found.slice(Number(cursor), end);
  sendJson(response, 200, { orders: view === "summary" ? page.map(summary) : page, next_cursor: end < found.length ? String(end) : null });
}

function summary(order) {
  const { order_uid, track_number, customer_id, date_created, items, payment: { amount, currency } } = order;
  return { order_uid, track_number, customer_id, date_created, items_count: items.length, amount, currency, etag: etagOf(order) };
}

/** Tests change the amount of an order and nothing else. */
function etagOf(order) {
  return `"42-${order.payment.amount.toString(16).padStart(16, "0")}"`;
}

function problem(response, status, code, detail, headers = {}) {
  const body = { type: `urn:order-service:problem:${code}`, title: code.replaceAll("_", " "), status, detail, code, request_id: "req-7f3a", errors: [] };
  sendJson(response, status, body, { ...headers, "Content-Type": "application/problem+json" });
}

function sendJson(response, status, body, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", "X-Request-Id": "req-7f3a", ...headers });
  response.end(JSON.stringify(body));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { address } = await startFakeApi({ port: Number(process.argv[2] ?? 8090) });
  console.log(`${address}/?uid=b563feb7b2b84b6test`);
}
