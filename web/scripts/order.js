/** Shows one order. */

import { hasToken } from "./access.js";
import { isUid, linkTo, navigate, shownUid } from "./address.js";
import { request } from "./client.js";
import { announce, byId, code, copyButton, element, emptyValue, fields, shown } from "./dom.js";
import { integer, moment, money } from "./format.js";
import { View, problemBox } from "./view.js";

const orderSection = byId("order");
export const orderView = new View(orderSection, "Reading the order…");

/** Fields that have a place of their own in the layout. All other fields are listed, so that none is hidden. */
const PLACED_FIELDS = new Set(["order_uid", "track_number", "customer_id", "date_created", "delivery", "payment", "items"]);

/** Shows the order of this uid above the list, or none. With `move` the focus follows, as after a search, but not at page load. */
export function showOrderOf({ uid, left, move }) {
  if (uid || byId("query").value === left) byId("query").value = uid;
  if (isUid(uid)) {
    openOrder(uid, { move });
    return;
  }
  closeOrder();
  if (uid) refuseUid(uid);
  else if (move) (linkTo(left) ?? byId("newest-heading")).focus();
}

function closeOrder() {
  orderView.clear();
  orderSection.hidden = true;
  document.title = "Orders";
}

/** Says that the address names no order. Such a text is never sent. */
function refuseUid(uid) {
  const text = "An order id has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or a digit.";
  const heading = element("h2", { id: "order-heading", tabIndex: -1 }, "This is not an order id");
  orderSection.replaceChildren(element("div", { className: "problem" }, element("div", { className: "panel-head" }, heading, closeButton()), element("p", {}, code(uid)), element("p", {}, text)));
  orderSection.hidden = false;
}

/** Reads an order and shows it. */
async function openOrder(uid, { move = true, keep = false } = {}) {
  orderSection.hidden = false;
  document.title = `${uid} · Orders`;
  const load = (signal) => request(orderPath(uid), { signal });
  const explain = (failure) => problemBoxOfOrder(uid, failure);
  const isShown = await orderView.run(load, (answer) => showOrder(uid, answer), { explain, keep });
  if (isShown) announce(`Order ${uid} is shown.`);
  if (move && shownUid() === uid) byId("order-heading")?.focus();
}

/** Reads the shown order again, and drops what was shown. Nothing may be left of what was read with a forgotten token. */
export function reopenOrder() {
  const uid = shownUid();
  orderView.clear();
  if (isUid(uid)) openOrder(uid, { move: false });
}

/** Says that the shown order has changed, if it is among these; null means that any order may have changed. */
export function noteChangeOfOrder(uids) {
  const uid = shownUid();
  if (!uid || (uids !== null && !uids.includes(uid))) return;
  byId("order-again")?.replaceChildren(uids === null ? "Read again (may have changed)" : "Read again (has changed)");
}

function orderPath(uid) {
  return `/order/${encodeURIComponent(uid)}`;
}

function problemBoxOfOrder(uid, failure) {
  const box =
    failure.status === 404
      ? problemBox(failure, {
          title: "No order with this id",
          hint: "Upper and lower case letters are different. Check whether a character is missing, or search by another value: track number, customer id, phone or e-mail.",
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
  const wasRawOpen = byId("raw")?.hidden === false;
  orderSection.replaceChildren(
    orderHead(uid, order, headers),
    orderActions(uid, order),
    element("div", { className: "cards" }, deliveryCard(order.delivery ?? {}), paymentCard(order.payment ?? {}), otherCard(order)),
    itemsTable(order),
  );
  if (wasRawOpen) byId("raw-toggle").click();
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
      element("p", { className: "total" }, element("span", { className: "label" }, "Amount"), element("strong", {}, total)),
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
  // The token itself must not get into a shell's history, so the command names a variable.
  const header = () => (hasToken() ? `-H "Authorization: Bearer $API_TOKEN" ` : "");
  const curl = () => `curl -sS ${header()}'${location.origin}${orderPath(uid).replaceAll("'", "%27")}'`;
  const raw = element("pre", { id: "raw", className: "raw", tabIndex: 0, hidden: true, "aria-label": "Raw JSON", role: "region" });
  const toggle = element("button", { type: "button", id: "raw-toggle", "aria-expanded": "false", "aria-controls": "raw" }, "Raw JSON");
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
  const paidAt = payment.payment_dt > 0 ? moment(new Date(payment.payment_dt * 1000).toISOString()) : emptyValue();
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
