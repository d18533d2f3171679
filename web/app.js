/**
 * The page of the order service. It looks up an order, lists the newest orders, and shows the state of the cache.
 *
 * Two rules hold everywhere below:
 * - The content of orders comes from strangers. It enters the page as text nodes only, and nothing here parses markup. The
 *   server's Content-Security-Policy also forbids inline scripts and styles.
 * - The page is never blank and never silent. Every request ends in content, in an empty state, or in a problem that says
 *   what to do and shows the request id, by which the request is found in the log.
 */

const POLL_MS = 5000; // As long as the cache's lease, so every state that matters is seen at least once.
const BUSY_AFTER_MS = 150; // For faster answers the page would only flicker.
const REQUEST_TIMEOUT_MS = 20_000; // Longer than any timeout of the service, so that the service's own answer comes first.
const RETRY_DEFAULT_S = 5;
const FEED_COUNT_MAX = 1000; // A higher number would tell the reader nothing more.
const LOCALE = "en-GB"; // The language of the page. Dates in another language would not fit its texts.
const ORDER_UID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

const byId = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------------------------
// Making elements. Nothing else makes them, and strings become text nodes.

/** Makes an element. `properties` are DOM properties; a name that has a dash or is `role` is an attribute. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else if (name === "onclick") node.addEventListener("click", value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const EMPTY_VALUE = () =>
  element("span", { className: "muted" }, element("span", { "aria-hidden": "true" }, "—"), hidden("empty"));

/** Makes a text that only assistive technology presents. */
function hidden(text) {
  return element("span", { className: "visually-hidden" }, text);
}

/** Shows a field of an order as text, whatever it contains. */
function shown(value) {
  if (value === undefined || value === null || value === "") return EMPTY_VALUE();
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Shows an identifier: monospaced, and it may break anywhere. */
function code(value) {
  const content = shown(value);
  return typeof content === "string" ? element("code", {}, content) : content;
}

/** Makes a list of labels and values. */
function fields(pairs) {
  const rows = pairs.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value)));
  return element("dl", { className: "fields" }, rows);
}

/** Tells assistive technology a text without moving the focus. */
function announce(text) {
  byId("announcer").textContent = text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Values

/**
 * Shows an amount as the producer sent it: the integer and the currency's code. Amounts have no unit, so nothing is divided.
 * The digits are not grouped, because many readers take "1,817" for less than two.
 */
function money(amount, currency) {
  if (!Number.isSafeInteger(amount)) return shown(amount);
  return `${amount} ${currency ?? ""}`.trimEnd();
}

function integer(value) {
  return Number.isFinite(value) ? new Intl.NumberFormat(LOCALE).format(value) : "–";
}

function percent(ratio) {
  return new Intl.NumberFormat(LOCALE, { style: "percent", maximumFractionDigits: 1 }).format(ratio);
}

function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const step = Math.min(Math.floor(Math.log(Math.max(count, 1)) / Math.log(1000)), units.length - 1);
  const options = { style: "unit", unit: units[step], unitDisplay: "short", maximumFractionDigits: 1 };
  return new Intl.NumberFormat(LOCALE, options).format(count / 1000 ** step);
}

function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "–";
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];

function relative(date) {
  const seconds = (date.getTime() - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return new Intl.RelativeTimeFormat(LOCALE, { numeric: "auto" }).format(Math.trunc(seconds / size), unit);
}

/** Shows a moment with its time zone and its age. With `compact` the age and the zone are left out. */
function moment(text, { compact = false } = {}) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return shown(text);
  const absolute = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: compact ? "medium" : "long" }).format(date);
  const time = element("time", { dateTime: date.toISOString(), title: String(text) }, absolute);
  if (compact) return time;
  const age = element("span", { className: "muted age" }, relative(date));
  age.dataset.since = date.toISOString();
  return element("span", {}, time, " ", age);
}

/** Updates the ages that `moment` wrote, while the page stays open. */
function refreshAges() {
  for (const age of document.querySelectorAll("[data-since]")) age.textContent = relative(new Date(age.dataset.since));
}

/** Cleans a pasted id: removes quotes, spaces and invisible characters anywhere, and commas around it. */
function cleanUid(text) {
  return text.replace(/[\s"'`´“”„‘’‚«»\u200b-\u200d\u2060\ufeff]/g, "").replace(/^[,;:]+|[,;:]+$/g, "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests

/** Why a request brought no content. Its `status` is 0 if the service did not answer at all. */
class Failure extends Error {
  constructor(status, problem = {}, headers = new Headers()) {
    super(problem.detail ?? problem.title ?? `the service answered with status ${status}`);
    this.status = status;
    this.title = problem.title;
    this.code = problem.code;
    this.errors = Array.isArray(problem.errors) ? problem.errors : [];
    this.requestId = problem.request_id ?? headers.get("x-request-id");
    this.retryAfterS = status === 503 ? retryAfter(headers) : null;
  }
}

/** Makes a failure of any error. An error of this page itself is also written to the browser's console. */
function asFailure(error) {
  if (error instanceof Failure) return error;
  console.error(error);
  return new Failure(-1, { title: "This page has an error", detail: error.message });
}

/** Reads the seconds from `Retry-After`, which may also be a date. */
function retryAfter(headers) {
  const value = headers.get("retry-after") ?? "";
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 300) : RETRY_DEFAULT_S;
}

/**
 * Sends a request and returns `{ status, headers, body }`. Throws `Failure`, or the signal's reason if a newer request has
 * replaced this one. `accept` lists statuses besides 2xx that count as answers.
 */
async function request(path, { signal, accept = [], ...options } = {}) {
  const timeout = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
  let response, text;
  try {
    response = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    connection.lose();
    throw new Failure(0, { title: "No answer", detail: timeout.aborted ? "The service did not answer in time." : "The service cannot be reached." });
  }
  connection.restore();
  const body = parseJson(response, text);
  if (response.ok || accept.includes(response.status)) {
    if (body !== undefined) return { status: response.status, headers: response.headers, body };
    throw new Failure(response.status, { title: "Unexpected answer", detail: "The service's answer was not JSON." }, response.headers);
  }
  throw new Failure(response.status, body ?? {}, response.headers);
}

function parseJson(response, text) {
  if (!/\bjson\b/.test(response.headers.get("content-type") ?? "")) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whether the service answers at all. While it does not, a banner says so. `onRestore` is called when it answers again. */
const connection = {
  isLost: false,
  onRestore: [],
  lose() {
    if (this.isLost) return;
    this.isLost = true;
    const banner = byId("offline");
    banner.textContent = navigator.onLine
      ? "The service does not answer. What you see may be out of date. The page tries again every few seconds."
      : "You are offline. What you see may be out of date. The page continues when the network is back.";
    banner.hidden = false;
  },
  restore() {
    if (!this.isLost) return;
    this.isLost = false;
    byId("offline").hidden = true;
    announce("The service answers again.");
    for (const callback of this.onRestore) callback();
  },
};

/**
 * A part of the page that shows the outcome of its newest request. An older request that is still running is dropped. A
 * slow request shows that it is running. After a 503 the request is repeated when `Retry-After` has passed.
 */
class View {
  constructor(body, loadingText) {
    this.body = body;
    this.loadingText = loadingText;
    this.failure = null;
  }

  /** Runs `load(signal)`, then `show(result)`. `explain(failure)` may make a box for a failure. Returns true on success. */
  async run(load, show, { explain, keep = false } = {}) {
    this.cancel();
    const controller = new AbortController();
    this.controller = controller;
    const retry = () => this.run(load, show, { explain, keep });
    const busy = setTimeout(() => this.showBusy(keep), BUSY_AFTER_MS);
    try {
      const result = await load(controller.signal);
      if (controller.signal.aborted) return false;
      this.failure = null;
      show(result);
      return true;
    } catch (error) {
      if (controller.signal.aborted) return false;
      this.failure = asFailure(error);
      this.retry = retry;
      this.showFailure(this.failure, explain, retry);
      return false;
    } finally {
      clearTimeout(busy);
      if (this.controller === controller) this.body.removeAttribute("aria-busy");
    }
  }

  cancel() {
    this.controller?.abort();
    clearInterval(this.ticker);
    this.failure = null;
  }

  /** Shows that a request is running. With `keep` the old content stays readable. */
  showBusy(keep) {
    this.body.setAttribute("aria-busy", "true");
    if (!keep) this.body.replaceChildren(element("p", { className: "loading" }, this.loadingText));
    announce(this.loadingText);
  }

  showFailure(failure, explain, retry) {
    const box = explain?.(failure) ?? problemBox(failure);
    const tryAgain = () => {
      this.body.tabIndex = -1; // The button disappears with the failure. The focus must not disappear with it.
      this.body.focus();
      retry();
    };
    const again = element("button", { type: "button", onclick: tryAgain }, "Try again");
    if (failure.status === 503) this.countDown(failure.retryAfterS, box, retry);
    if (failure.status !== 404 && failure.status !== 400) box.append(element("p", { className: "actions" }, again));
    this.body.replaceChildren(box);
    announce(`${box.querySelector("h3")?.textContent ?? ""}. ${failure.message}`);
  }

  /** Counts down. Screen readers hear only the first number, because a running count would drown everything else. */
  countDown(seconds, box, retry) {
    const left = element("span", {}, String(seconds));
    box.append(element("p", { "aria-hidden": "true" }, "Trying again in ", left, " s."), hidden(`Trying again in ${seconds} s.`));
    this.ticker = setInterval(() => {
      seconds -= 1;
      left.textContent = String(Math.max(seconds, 0));
      if (seconds <= 0 && !document.hidden) retry();
    }, 1000);
  }

  /** Repeats a request that did not reach the service, so that nobody has to press a button after an outage. */
  retryIfUnreached() {
    if (this.failure?.status === 0) this.retry();
  }
}

/** Shows a problem: what happened, which fields are wrong, and the request id, which is found in the log. */
function problemBox(failure, { title, hint } = {}) {
  const heading = title ?? failure.title ?? "Something went wrong";
  const details = failure.errors.map(({ pointer, detail }) => element("li", {}, code(pointer), " ", shown(detail)));
  return element(
    "div",
    { className: "problem" },
    element("h3", {}, capitalised(heading)),
    element("p", {}, capitalised(failure.message)),
    details.length > 0 ? element("ul", {}, details) : null,
    hint ? element("p", { className: "muted" }, hint) : null,
    failure.requestId
      ? element("p", { className: "request-id" }, "Request ", code(failure.requestId), " ", copyButton("Copy", () => failure.requestId, "request id"))
      : null,
  );
}

function capitalised(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// ---------------------------------------------------------------------------------------------------------------------
// Copying

/** Makes a button that copies a text, shows the outcome as its own label, and then gets its old label back. */
function copyButton(label, text, what) {
  const button = element("button", { type: "button", className: "quiet" }, label, what ? hidden(` ${what}`) : null);
  button.addEventListener("click", async () => {
    const isDone = await copy(text());
    const note = isDone ? "Copied" : "Copying failed";
    announce(note);
    const original = [...button.childNodes];
    if (button.dataset.noted) return;
    button.dataset.noted = "yes";
    button.replaceChildren(note);
    setTimeout(() => {
      button.replaceChildren(...original);
      delete button.dataset.noted;
    }, 1500);
  });
  return button;
}

/** Copies a text. The clipboard API exists only on https and localhost. Elsewhere the old command still works. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = element("textarea", { value: text, readOnly: true, className: "visually-hidden" });
    document.body.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isDone;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// One order

const orderSection = byId("order");
const orderView = new View(orderSection, "Reading the order…");

/** Fields that have a place of their own in the layout. All other fields are listed, so that none is hidden. */
const PLACED_FIELDS = new Set(["order_uid", "track_number", "customer_id", "date_created", "delivery", "payment", "items"]);

/** Reads an order and shows it. With `move` the focus goes to its heading, as after a search, but not at page load. */
async function openOrder(uid, { move = true, keep = false } = {}) {
  orderSection.hidden = false;
  document.title = `${uid} · Orders`;
  const load = (signal) => request(orderPath(uid), { signal });
  const explain = (failure) => problemBoxOfOrder(uid, failure);
  const isShown = await orderView.run(load, (answer) => showOrder(uid, answer), { explain, keep });
  if (isShown) announce(`Order ${uid} is shown.`);
  if (move && new URLSearchParams(location.search).get("uid") === uid) byId("order-heading")?.focus();
}

function orderPath(uid) {
  return `/order/${encodeURIComponent(uid)}`;
}

function problemBoxOfOrder(uid, failure) {
  const box =
    failure.status === 404
      ? problemBox(failure, {
          title: "No order with this id",
          hint: "Upper and lower case letters are different. Check whether a character is missing, or search the newest orders below by customer id or track number.",
        })
      : problemBox(failure);
  const heading = element("h2", { id: "order-heading", tabIndex: -1 }, "Order ", element("code", {}, uid));
  const head = element("div", { className: "panel-head" }, heading, closeButton());
  box.prepend(head);
  return box;
}

function closeButton() {
  return element("button", { type: "button", className: "quiet", onclick: () => navigate(null) }, "Close");
}

function showOrder(uid, { headers, body: order }) {
  orderSection.replaceChildren(
    orderHead(uid, order, headers),
    orderActions(uid, order),
    element("div", { className: "cards" }, deliveryCard(order.delivery ?? {}), paymentCard(order.payment ?? {}), otherCard(order)),
    itemsTable(order),
  );
}

function orderHead(uid, order, headers) {
  const total = money(order.payment?.amount, order.payment?.currency);
  return element(
    "div",
    { className: "order-head" },
    element(
      "div",
      { className: "panel-head" },
      element("h2", { id: "order-heading", tabIndex: -1 }, "Order ", element("code", {}, shown(order.order_uid ?? uid))),
      closeButton(),
    ),
    element("p", { className: "badges" }, freshnessBadge(headers), versionBadge(headers)),
    element(
      "div",
      { className: "order-facts" },
      element("p", { className: "total" }, element("span", { className: "label" }, "Total"), element("strong", {}, total)),
      fields([
        ["Created", moment(order.date_created)],
        ["Customer", code(order.customer_id)],
        ["Track number", code(order.track_number)],
      ]),
    ),
  );
}

/** Says where the answer came from, according to `Cache-Status` (RFC 9211). */
function freshness(headers) {
  const status = headers.get("cache-status") ?? "";
  if (/;\s*hit\b/.test(status)) {
    const age = headers.get("age");
    return { level: "ok", text: age === null ? "from cache" : `from cache, proven ${age} s ago` };
  }
  if (/detail="?blind/.test(status)) return { level: "warn", text: "from the database: cache is blind" };
  if (/;\s*fwd=/.test(status)) return { level: "info", text: "from the database" };
  return { level: "unknown", text: "source unknown" };
}

function freshnessBadge(headers) {
  const { level, text } = freshness(headers);
  const badge = element("span", { className: "badge", title: headers.get("cache-status") ?? "" }, element("span", { className: "dot", "aria-hidden": "true" }), text);
  badge.dataset.level = level;
  return badge;
}

function versionBadge(headers) {
  const version = headers.get("etag")?.match(/[0-9]+/)?.[0];
  return version ? element("span", { className: "badge", title: "From the ETag. It changes with every write." }, `version ${version}`) : null;
}

function orderActions(uid, order) {
  const json = () => JSON.stringify(order, null, 2);
  const curl = () => `curl -sS '${location.origin}${orderPath(uid).replaceAll("'", "%27")}'`;
  const raw = element("pre", { id: "raw", className: "raw", tabIndex: 0, hidden: true, "aria-label": "Raw JSON", role: "region" });
  const toggle = element("button", { type: "button", "aria-expanded": "false", "aria-controls": "raw" }, "Raw JSON");
  toggle.addEventListener("click", () => {
    raw.hidden = !raw.hidden;
    raw.textContent = raw.hidden ? "" : json();
    toggle.setAttribute("aria-expanded", String(!raw.hidden));
  });
  const again = element("button", { type: "button", id: "order-again", onclick: () => openOrder(uid, { keep: true }) }, "Read again");
  const buttons = [copyButton("Copy id", () => order.order_uid ?? uid), copyButton("Copy JSON", json), copyButton("Copy curl", curl)];
  return element("div", {}, element("div", { className: "actions" }, again, toggle, buttons), raw);
}

function card(title, ...content) {
  return element("section", { className: "card" }, element("h3", {}, title), content);
}

function deliveryCard(delivery) {
  const labels = { name: "Name", phone: "Phone", email: "Email", address: "Address", city: "City", region: "Region", zip: "Zip" };
  return card("Delivery", fields(Object.entries(labels).map(([key, label]) => [label, shown(delivery[key])])));
}

function paymentCard(payment) {
  const amount = (value) => money(value, payment.currency);
  const paidAt = payment.payment_dt > 0 ? moment(new Date(payment.payment_dt * 1000).toISOString()) : EMPTY_VALUE();
  return card(
    "Payment",
    fields([
      ["Goods", amount(payment.goods_total)],
      ["Delivery", amount(payment.delivery_cost)],
      ["Custom fee", amount(payment.custom_fee)],
      ["Amount", element("strong", {}, amount(payment.amount))],
      ["Currency", shown(payment.currency)],
      ["Paid", paidAt],
      ["Provider", shown(payment.provider)],
      ["Bank", shown(payment.bank)],
      ["Transaction", code(payment.transaction)],
      ["Request id", code(payment.request_id)],
    ]),
  );
}

function otherCard(order) {
  const rest = Object.entries(order).filter(([name]) => !PLACED_FIELDS.has(name));
  return card("Other fields", fields(rest.map(([name, value]) => [name, code(value)])));
}

/** Puts two values into one cell, one below the other, because ten columns would not fit beside the cache's panel. */
function stacked(first, second) {
  return [element("div", {}, first), element("div", { className: "muted" }, second)];
}

/** The columns of the items: the title, whether the column holds numbers, and what to show. */
const ITEM_COLUMNS = [
  ["Item", false, (item) => stacked(element("strong", {}, shown(item.name)), shown(item.brand))],
  ["Size", false, (item) => shown(item.size)],
  ["Price", true, (item, currency) => money(item.price, currency)],
  ["Sale", true, (item) => `${item.sale ?? 0} %`],
  ["Total", true, (item, currency) => money(item.total_price, currency)],
  ["Status", true, (item) => shown(item.status)],
  ["chrt_id / nm_id", true, (item) => stacked(code(item.chrt_id), code(item.nm_id))],
  ["Track number / rid", false, (item) => stacked(code(item.track_number), code(item.rid))],
];

function itemsTable(order) {
  const items = Array.isArray(order.items) ? order.items : [];
  const currency = order.payment?.currency;
  const heading = element("h3", { id: "items-heading" }, `Items (${integer(items.length)})`);
  const head = ITEM_COLUMNS.map(([title, isNumber]) => element("th", { scope: "col", className: isNumber ? "number" : "" }, title));
  const rows = items.map((item) =>
    element("tr", {}, ITEM_COLUMNS.map(([, isNumber, cell]) => element("td", { className: isNumber ? "number" : "" }, cell(item, currency)))),
  );
  const table = element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows));
  // The region can be focused, because a region that scrolls sideways must be reachable by keyboard.
  const scroller = element("div", { className: "scroller", role: "region", tabIndex: 0, "aria-labelledby": "items-heading" }, table);
  return element("section", { className: "items" }, heading, scroller);
}

// ---------------------------------------------------------------------------------------------------------------------
// Newest orders

const listView = new View(byId("newest-body"), "Reading the newest orders…");

/** Each page is found by a cursor. The cursors of the earlier pages are kept on a stack for the way back. */
const list = { filters: {}, limit: "20", cursors: [null], next: null };

function listPath() {
  const query = new URLSearchParams({ limit: list.limit, ...list.filters });
  const cursor = list.cursors.at(-1);
  if (cursor) query.set("cursor", cursor);
  return `/api/v1/orders?${query}`;
}

async function loadList({ keep = true } = {}) {
  list.next = null;
  updatePager(null);
  feed.forgetChanges();
  const load = (signal) => request(listPath(), { signal, cache: "no-store" });
  return listView.run(load, ({ body }) => showList(body), { explain: problemBoxOfList, keep });
}

/** Shows a failure of the list. A cursor is valid only for the filters it was made for; then the first page helps. */
function problemBoxOfList(failure) {
  const box = problemBox(failure);
  if (failure.code === "invalid_cursor") {
    box.append(element("button", { type: "button", onclick: () => firstPage() }, "To the first page"));
  }
  return box;
}

function showList({ orders = [], next_cursor: next = null }) {
  list.next = next;
  byId("newest-body").replaceChildren(orders.length > 0 ? listTable(orders) : emptyList());
  updatePager(orders.length);
  announce(`Page ${list.cursors.length}, ${orders.length} orders.`);
}

function emptyList() {
  const isFiltered = Object.keys(list.filters).length > 0;
  const text = isFiltered
    ? "No order matches these filters. A filter needs the whole customer id or the whole track number."
    : "No orders yet. They appear here as soon as the ingestor has stored the first one.";
  return element("p", { className: "empty" }, text);
}

const LIST_COLUMNS = [
  ["Order", (order) => element("a", { href: orderLink(order.order_uid), className: "uid" }, shown(order.order_uid))],
  ["Created", (order) => moment(order.date_created, { compact: true })],
  ["Customer", (order) => code(order.customer_id)],
  ["Track number", (order) => code(order.track_number)],
  ["Items", (order) => integer(order.items?.length ?? 0)],
  ["Total", (order) => money(order.payment?.amount, order.payment?.currency)],
];

function orderLink(uid) {
  return `/?uid=${encodeURIComponent(uid)}`;
}

/** Makes the table. On narrow screens CSS turns its rows into cards and removes the table's roles, so they are explicit. */
function listTable(orders) {
  const isNumber = (title) => (title === "Items" || title === "Total" ? "number" : "");
  const head = LIST_COLUMNS.map(([title]) => element("th", { scope: "col", role: "columnheader", className: isNumber(title) }, title));
  const rows = orders.map((order) =>
    element("tr", { role: "row" }, LIST_COLUMNS.map(([title, cell]) => element("td", { role: "cell", className: isNumber(title), "data-label": title }, cell(order)))),
  );
  return element(
    "table",
    { className: "list", role: "table", "aria-labelledby": "newest-heading" },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, head)),
    element("tbody", { role: "rowgroup" }, rows),
  );
}

/** Sets `aria-disabled` and not `disabled`, because a focused button that becomes disabled would lose the focus. */
function updatePager(count) {
  byId("page-back").setAttribute("aria-disabled", String(list.cursors.length < 2));
  byId("page-next").setAttribute("aria-disabled", String(list.next === null));
  byId("page-label").textContent = count === null ? "" : `Page ${list.cursors.length} · ${integer(count)} orders`;
}

function nextPage() {
  if (list.next === null) return;
  list.cursors.push(list.next);
  loadList();
}

function previousPage() {
  if (list.cursors.length < 2) return;
  list.cursors.pop();
  loadList();
}

function firstPage() {
  list.cursors = [null];
  loadList();
}

function applyFilters(form) {
  const given = new FormData(form);
  list.filters = {};
  for (const name of ["customer_id", "track_number"]) {
    const value = given.get(name).trim();
    if (value) list.filters[name] = value;
  }
  list.limit = given.get("limit");
  firstPage();
}

// ---------------------------------------------------------------------------------------------------------------------
// The live feed. It says that something shown has changed, but never replaces content by itself, and is not read out.

const feed = {
  source: null,
  changed: new Set(),
  mayDiffer: false, // After a `resync`: any order may have changed.
  isBehind: false, // The connection was closed, so changes may have been missed.

  /** Connects, or disconnects in a hidden tab, because browsers allow few connections to one site. */
  follow() {
    if (document.hidden) {
      this.source?.close();
      this.source = null;
      this.isBehind = true;
      return;
    }
    if (this.source) return;
    this.source = new EventSource("/api/v1/events");
    this.source.addEventListener("order", ({ data }) => this.note(JSON.parse(data).order_uids));
    this.source.addEventListener("resync", () => this.note(null));
    if (this.isBehind) this.note(null);
    this.isBehind = false;
  },

  /** Notes that these orders have changed; `null` means that any order may have changed. */
  note(uids) {
    if (routed && (uids === null || uids.includes(routed))) {
      byId("order-again")?.replaceChildren(uids === null ? "Read again (may have changed)" : "Read again (has changed)");
    }
    if (uids === null) this.mayDiffer = true;
    for (const uid of uids ?? []) if (this.changed.size < FEED_COUNT_MAX) this.changed.add(uid);
    const count = `${integer(this.changed.size)}${this.changed.size < FEED_COUNT_MAX ? "" : " or more"} changed`;
    byId("newest-refresh").textContent = `Refresh (${this.mayDiffer ? "may have changed" : count})`;
  },

  /** Forgets the changes, because the list is read again. */
  forgetChanges() {
    this.changed.clear();
    this.mayDiffer = false;
    byId("newest-refresh").textContent = "Refresh";
  },
};

// ---------------------------------------------------------------------------------------------------------------------
// Cache and health

const LISTENER_STATES = {
  starting: ["warn", "Starting. The service waits for the database."],
  connecting: ["warn", "Connecting to the database's event channel. Reads go to the database, so nothing is stale."],
  subscribing: ["warn", "Subscribing to events. Reads go to the database, so nothing is stale."],
  syncing: ["warn", "Comparing the cache with the database. An order is served from the cache once it has been compared."],
  live: ["ok", "Live. The cache hears every change."],
  suspect: ["bad", "The event channel has been silent for longer than the lease. Reads go to the database, and cached orders are not served."],
};

const cacheView = new View(byId("cache-body"), "Reading the statistics…");
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
  const token = byId("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const load = (signal) => request("/api/v1/cache/warmup", { method: "POST", headers, signal });
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
    unauthorized: "Enter the service's token under “API token” above.",
    writes_disabled: "The service accepts no writes. To change this, set API_TOKEN for the service.",
    forbidden_origin: "Without a token this works only on the machine itself, under the name localhost.",
  };
  if (failure.code === "unauthorized") byId("warmup").querySelector("details").open = true;
  return problemBox(failure, { hint: hints[failure.code] });
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
    const { body } = await request("/health", { accept: [503], cache: "no-store" });
    showChecks(body);
  } catch (error) {
    const failure = asFailure(error);
    showHealth("bad", failure.status === 0 ? "no answer" : "unknown");
    byId("checks-body").replaceChildren(element("p", { className: "muted" }, capitalised(failure.message)));
  }
}

/** Loads the statistics. It announces no failure, because a failure every five seconds must not be read out each time. */
async function loadStats() {
  try {
    const { body } = await request("/api/v1/cache/stats", { cache: "no-store" });
    showStats(body);
  } catch (error) {
    const body = byId("cache-body");
    if (!body.contains(document.activeElement)) body.replaceChildren(problemBox(asFailure(error), { title: "No statistics" }));
  }
}

let pollTimer;

/** Loads statistics and health, and repeats this after a while. A hidden tab loads nothing. */
async function poll() {
  clearTimeout(pollTimer);
  if (document.hidden) return;
  await Promise.all([loadStats(), loadHealth()]);
  refreshAges();
  clearTimeout(pollTimer); // Another call may have set it meanwhile.
  pollTimer = setTimeout(poll, POLL_MS);
}

// ---------------------------------------------------------------------------------------------------------------------
// Addresses, keys and start

let routed; // The uid that the page shows. If only the fragment changes (the skip link), the order is not read again.

/** Shows what the address names: an order above the list, or only the list. */
function route({ move }) {
  const uid = new URLSearchParams(location.search).get("uid") ?? "";
  const left = routed;
  routed = uid;
  byId("uid").value = uid;
  showUidError("");
  if (uid && isUid(uid)) {
    openOrder(uid, { move });
    return;
  }
  closeOrder();
  if (uid) refuseUid();
  if (move) (linkTo(left) ?? byId("newest-heading")).focus();
}

/** Finds the link by which the reader opened an order, if it is still on the page. */
function linkTo(uid) {
  return uid ? document.querySelector(`a.uid[href="${CSS.escape(orderLink(uid))}"]`) : null;
}

function navigate(uid) {
  const address = uid === null ? "/" : orderLink(uid);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  route({ move: true });
}

function closeOrder() {
  orderView.cancel();
  orderSection.hidden = true;
  orderSection.replaceChildren();
  document.title = "Orders";
}

function isUid(uid) {
  return ORDER_UID.test(uid);
}

function refuseUid() {
  showUidError("This is not an order id. An id has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or a digit.");
}

function showUidError(text) {
  byId("uid-error").textContent = text;
  byId("uid-error").hidden = text === "";
  byId("uid").setAttribute("aria-invalid", String(text !== ""));
}

function lookUp() {
  const uid = cleanUid(byId("uid").value);
  byId("uid").value = uid;
  if (isUid(uid)) {
    navigate(uid);
    return;
  }
  refuseUid();
  announce(byId("uid-error").textContent);
  byId("uid").focus();
}

/** Opens links to orders in this page, unless a new tab is requested. */
function followLink(event) {
  const link = event.target.closest("a[href^='/?uid='], a.brand");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  navigate(new URL(link.href).searchParams.get("uid"));
}

function focusBox(event) {
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key !== "/" || isTyping || event.metaKey || event.ctrlKey || event.altKey) return;
  event.preventDefault();
  byId("uid").focus();
  byId("uid").select();
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action(event.target);
  });
}

function start() {
  onSubmit("lookup", lookUp);
  onSubmit("filters", applyFilters);
  onSubmit("warmup", warmUp);
  byId("filters").addEventListener("reset", (event) => setTimeout(() => applyFilters(event.target)));
  byId("filters").elements.limit.addEventListener("change", () => applyFilters(byId("filters")));
  byId("newest-refresh").addEventListener("click", () => loadList());
  byId("page-next").addEventListener("click", nextPage);
  byId("page-back").addEventListener("click", previousPage);
  document.addEventListener("click", followLink);
  document.addEventListener("keydown", focusBox);
  document.addEventListener("visibilitychange", () => {
    poll();
    feed.follow();
  });
  window.addEventListener("popstate", () => {
    if ((new URLSearchParams(location.search).get("uid") ?? "") !== routed) route({ move: false });
  });
  window.addEventListener("offline", () => connection.lose());
  window.addEventListener("online", () => poll());
  connection.onRestore.push(() => orderView.retryIfUnreached(), () => listView.retryIfUnreached());
  feed.follow(); // First, so that no change is missed between reading and following.
  route({ move: false });
  loadList({ keep: false });
  poll();
}

start();
