/**
 * A stand-in for the api. It serves the page with the same Content-Security-Policy and answers with made-up orders.
 *
 * The browser test beside it uses it. It also allows work on the page without a database: `node web/tests/fake_api.mjs 8090`.
 * It does not check the rules of the real service; the api's own tests do.
 */

import { readFile } from "node:fs/promises";
import http from "node:http";
import { fileURLToPath } from "node:url";

const WEB = new URL("../", import.meta.url);
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; " +
  "form-action 'self'; frame-ancestors 'none'";
const ASSETS = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/style.css": ["style.css", "text/css; charset=utf-8"],
  "/app.js": ["app.js", "text/javascript; charset=utf-8"],
  "/api.html": ["api.html", "text/html; charset=utf-8"],
  "/api.js": ["api.js", "text/javascript; charset=utf-8"],
  "/favicon.svg": ["favicon.svg", "image/svg+xml"],
  "/openapi.json": ["../api/openapi.json", "application/json"],
};

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

/** Starts the server. Tests change `state` to simulate faults. `state.seen` lists the requests. */
export async function startFakeApi({ port = 0 } = {}) {
  const orders = Array.from({ length: 45 }, (_, index) =>
    makeOrder(`order${String(index).padStart(3, "0")}`, { amount: 1817 + index * 1234, createdAt: new Date(Date.UTC(2026, 4, 4, 9, 0, -index * 97)).toISOString() }),
  );
  orders.push(
    makeOrder("b563feb7b2b84b6test"),
    makeOrder("markup", { fill: MARKUP }),
    makeOrder("yen", { currency: "JPY", amount: 1817 }),
    makeOrder("largest", { currency: "EUR", amount: 9007199254740991 }),
    makeOrder("nomoney", { currency: "QQQ", amount: 1817 }),
  );
  const state = { seen: [], isDown: false, isBlind: false, delayMs: 0, token: "", health: null, followers: [] };
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    state.seen.push(`${request.method} ${request.url}`);
    const answer = () => route(request, response, url, { orders, state });
    if (state.delayMs > 0 && !(url.pathname in ASSETS)) setTimeout(answer, state.delayMs);
    else answer();
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  const address = `http://127.0.0.1:${server.address().port}`;
  const tell = (event, data) => state.followers.forEach((each) => each.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
  return { address, state, tell, stop: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }) };
}

async function route(request, response, url, { orders, state }) {
  const path = url.pathname;
  if (path in ASSETS) {
    const [file, type] = ASSETS[path];
    response.writeHead(200, { "Content-Type": type, "Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff" });
    response.end(await readFile(new URL(file, WEB)));
    return;
  }
  if (path === "/api/v1/events") {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    response.write("retry: 3000\n\n");
    state.followers.push(response);
  } else if (path === "/health") {
    const healthy = { status: "ok", checks: { database: { status: "ok" }, listener: { state: "live", proof_age_ms: 412 } } };
    const body = state.isDown ? { status: "down", checks: { database: { status: "down" } } } : (state.health ?? healthy);
    sendJson(response, state.isDown ? 503 : 200, body);
  } else if (path === "/api/v1/cache/stats") {
    sendJson(response, 200, state.isDown || state.isBlind ? { ...STATS, listener: { ...STATS.listener, state: "suspect" } } : STATS);
  } else if (state.isDown) {
    problem(response, 503, "database_unavailable", "the database cannot be reached", { "Retry-After": "2" });
  } else if (path.startsWith("/order/")) {
    sendOrder(request, response, decodeURIComponent(path.slice("/order/".length)), { orders, state });
  } else if (path === "/api/v1/orders") {
    sendPage(response, url.searchParams, orders);
  } else if (path === "/api/v1/cache/warmup" && request.method === "POST") {
    if (state.token && request.headers.authorization !== `Bearer ${state.token}`) problem(response, 401, "unauthorized", "a bearer token is needed");
    else sendJson(response, 200, { loaded: 8123, duration_ms: 271 });
  } else {
    problem(response, 404, "no_such_endpoint", "there is nothing here");
  }
}

function sendOrder(request, response, uid, { orders, state }) {
  const order = orders.find((each) => each.order_uid === uid);
  if (!order) {
    problem(response, 404, "order_not_found", `there is no order ${uid}`);
    return;
  }
  const source = state.isBlind ? { "Cache-Status": "orders; fwd=bypass; detail=blind" } : { "Cache-Status": "orders; hit", Age: "0" };
  const headers = { ETag: '"42-5f0c1a7be2d94836"', "Cache-Control": "private, no-cache", ...source };
  if (request.headers["if-none-match"] === '"42-5f0c1a7be2d94836"') {
    response.writeHead(304, headers).end();
    return;
  }
  sendJson(response, 200, order, headers);
}

function sendPage(response, query, orders) {
  const limit = Number(query.get("limit") ?? 50);
  const start = Number(query.get("cursor") ?? 0);
  const isWanted = (order) => ["customer_id", "track_number"].every((name) => !query.has(name) || order[name] === query.get(name));
  const found = orders.filter(isWanted);
  const end = start + limit;
  sendJson(response, 200, { orders: found.slice(start, end), next_cursor: end < found.length ? String(end) : null });
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
