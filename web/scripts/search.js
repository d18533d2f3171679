/** Finds orders by whatever people have at hand. What they type never gets into an address, which others could read in a log. */

import { navigate } from "./address.js";
import { asFailure, request, search } from "./client.js";
import { announce, byId, element, onSubmit } from "./dom.js";
import { clean, kindsOf, uidOf } from "./kinds.js";
import { summaryRow, summaryTable } from "./summary_table.js";
import { View, problemBox } from "./view.js";

const LIMIT = 10;

export const searchView = new View(byId("search-body"), "Searching…");

export function startSearch() {
  onSubmit("lookup", () => find(byId("query").value));
  byId("search-close").addEventListener("click", () => {
    closeSearch();
    byId("query").focus();
  });
  document.addEventListener("keydown", focusBox);
}

export function closeSearch() {
  searchView.clear();
  byId("search").hidden = true;
}

/** Opens the order whose id the text is. If there is none, shows all orders that match in another way. */
async function find(typed) {
  const text = clean(typed);
  byId("query").value = text;
  const kinds = kindsOf(text);
  showQueryError(kinds.length > 0 ? "" : "Enter an order id, a track number, a customer id, a phone number or an e-mail address.");
  if (kinds.length === 0) return;
  byId("search").hidden = false;
  let uid; // Looked up once: a search that the page repeats by itself must not open an order.
  const load = async (signal) => {
    uid = uid === undefined ? await existingUid(text, signal) : null;
    return uid ?? Promise.all(kinds.map((kind) => results(kind, signal)));
  };
  const isShown = await searchView.run(load, showFound);
  const isWaiting = byId("lookup").contains(document.activeElement) || document.activeElement === document.body;
  if (isShown && isWaiting && !byId("search").hidden) byId("search-heading").focus();
}

function showQueryError(text) {
  byId("query-error").textContent = text;
  byId("query-error").hidden = text === "";
  byId("query").setAttribute("aria-invalid", String(text !== ""));
  if (text) announce(text);
}

/** Returns the text as an order's id if there is such an order, and otherwise null. This reads from the cache. */
async function existingUid(text, signal) {
  const uid = uidOf(text);
  if (uid === null) return null;
  const { status } = await request(`/order/${encodeURIComponent(uid)}`, { signal, accept: [404] });
  return status === 404 ? null : uid;
}

/** Searches by one kind. A failure is a result, too, because the other kinds may have found something. */
async function results(group, signal, cursor = null) {
  const { kind, value } = group;
  const body = { [kind]: value, limit: LIMIT, view: "summary", ...(cursor && { cursor }) };
  try {
    const { body: page } = await search(body, { signal });
    return { ...group, orders: page.orders, next: page.next_cursor };
  } catch (error) {
    signal?.throwIfAborted();
    return { ...group, orders: [], next: null, failure: asFailure(error) };
  }
}

function showFound(found) {
  if (typeof found === "string") {
    closeSearch();
    navigate(found);
    return;
  }
  const failures = found.map(({ failure }) => failure).filter((failure) => failure);
  if (failures.length === found.length) throw failures[0];
  const groups = found.filter(({ orders, failure }) => orders.length > 0 || failure);
  byId("search-body").replaceChildren(...(groups.length > 0 ? groups.map(groupBox) : [nothing(found)]));
  const count = found.reduce((sum, { orders }) => sum + orders.length, 0);
  announce(count === 0 ? "Nothing found." : `${count} orders found.`);
}

/** Says what was looked for, so that people know what else to try. */
function nothing(found) {
  const fields = found.map(({ field }) => field.charAt(0).toLowerCase() + field.slice(1));
  return element(
    "div",
    { className: "empty" },
    element("p", {}, "No order matches ", element("code", {}, found[0].value), "."),
    element("p", {}, `Searched by ${new Intl.ListFormat("en-GB").format(fields)}. Upper and lower case letters are different, except in e-mail addresses.`),
    element("p", {}, "Of an order id and a track number the first three characters are enough. Other values must be whole."),
  );
}

/** Shows the orders of one kind below the reason for which they matched. */
function groupBox(group) {
  const id = `search-${group.kind}`;
  const heading = element("h3", { id }, `${group.field} ${group.relation} `, element("code", {}, group.value));
  if (group.failure) return element("section", { className: "match" }, heading, problemBox(group.failure));
  const table = summaryTable(group.orders, id);
  const more = element("button", { type: "button", className: "quiet", hidden: group.next === null }, "Show more");
  more.addEventListener("click", () => showMore(group, table, more));
  return element("section", { className: "match", "aria-labelledby": id }, heading, table, more);
}

async function showMore(group, table, button) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  const { orders, next, failure } = await results(group, undefined, group.next);
  button.setAttribute("aria-disabled", "false");
  if (failure) {
    button.before(problemBox(failure));
    return;
  }
  group.next = next;
  const rows = orders.map(summaryRow);
  table.querySelector("tbody").append(...rows);
  rows[0]?.querySelector("a").focus(); // The button may disappear. The focus must not disappear with it.
  button.hidden = next === null;
  announce(`${orders.length} more orders.`);
}

function focusBox(event) {
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key !== "/" || isTyping || event.metaKey || event.ctrlKey || event.altKey) return;
  event.preventDefault();
  byId("query").focus();
  byId("query").select();
}
