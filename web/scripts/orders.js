/** Lists the newest orders. The list is made of summaries, which hold no personal data. */

import { request } from "./client.js";
import { announce, byId, element, onSubmit } from "./dom.js";
import { integer } from "./format.js";
import { markChanged, summaryTable } from "./summary_table.js";
import { View, problemBox } from "./view.js";

const COUNT_MAX = 1000; // A higher number of changes would tell the reader nothing more.

export const listView = new View(byId("newest-body"), "Reading the newest orders…");

/** Each page is found by a cursor. The cursors of the earlier pages are kept on a stack for the way back. */
const list = { filters: {}, limit: "20", cursors: [null], next: null };

function listPath() {
  const query = new URLSearchParams({ view: "summary", limit: list.limit, ...list.filters });
  const cursor = list.cursors.at(-1);
  if (cursor) query.set("cursor", cursor);
  return `/api/v1/orders?${query}`;
}

/** Reads the page of the list again. */
export async function loadList({ keep = true } = {}) {
  list.next = null;
  updatePager(null);
  forgetChanges();
  // "no-cache" asks whether the list is still the same. If it is, the answer is a short 304.
  const load = (signal) => request(listPath(), { signal, cache: "no-cache" });
  return listView.run(load, ({ body }) => showList(body), { explain: problemBoxOfList, keep });
}

/** Drops what was shown, and reads the page of the list. Nothing may be left of what was read with a forgotten token. */
export function reloadList() {
  listView.clear();
  loadList({ keep: false });
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
  byId("newest-body").replaceChildren(orders.length > 0 ? summaryTable(orders, "newest-heading") : emptyList());
  markChanged(byId("newest-body"), changed); // Events that came while the list was read.
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

export function startList() {
  const form = byId("filters");
  onSubmit("filters", applyFilters);
  form.addEventListener("reset", () => setTimeout(() => applyFilters(form))); // The fields are empty only after the event.
  form.elements.limit.addEventListener("change", () => applyFilters(form));
  byId("newest-refresh").addEventListener("click", () => loadList());
  byId("page-next").addEventListener("click", nextPage);
  byId("page-back").addEventListener("click", previousPage);
}

// ---------------------------------------------------------------------------------------------------------------------
// Changes since the list was read. They are only announced: rows do not move under the reader's hand.

const changed = new Set();
let mayDiffer = false; // Any order may have changed.

/** Notes that these orders have changed; null means that any order may have changed. */
export function noteChangesOfList(uids) {
  if (uids === null) mayDiffer = true;
  for (const uid of uids ?? []) if (changed.size < COUNT_MAX) changed.add(uid);
  const count = `${integer(changed.size)}${changed.size < COUNT_MAX ? "" : " or more"} changed`;
  byId("newest-refresh").textContent = `Refresh (${mayDiffer ? "may have changed" : count})`;
  markChanged(byId("main"), changed);
}

function forgetChanges() {
  changed.clear();
  mayDiffer = false;
  byId("newest-refresh").textContent = "Refresh";
}
