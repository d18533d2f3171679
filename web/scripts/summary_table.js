/** Shows summaries of orders in a table. */

import { orderLink } from "./address.js";
import { code, element, shown } from "./dom.js";
import { integer, moment, money } from "./format.js";

const COLUMNS = [
  { title: "Order", show: (order) => element("a", { href: orderLink(order.order_uid), className: "uid" }, shown(order.order_uid)) },
  { title: "Created", show: (order) => moment(order.date_created, { compact: true }) },
  { title: "Customer", show: (order) => code(order.customer_id) },
  { title: "Track number", show: (order) => code(order.track_number) },
  { title: "Items", isNumber: true, show: (order) => integer(order.items_count) },
  { title: "Amount", isNumber: true, show: (order) => money(order.amount, order.currency) },
];

/** Makes the table. On narrow screens CSS turns its rows into cards and removes the table's roles, so they are explicit. */
export function summaryTable(orders, labelledBy) {
  const head = COLUMNS.map(({ title, isNumber }) => element("th", { scope: "col", role: "columnheader", className: isNumber ? "number" : "" }, title));
  return element(
    "table",
    { className: "list", role: "table", "aria-labelledby": labelledBy },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, head)),
    element("tbody", { role: "rowgroup" }, orders.map(summaryRow)),
  );
}

export function summaryRow(order) {
  const cells = COLUMNS.map(({ title, isNumber, show }) =>
    element("td", { role: "cell", className: isNumber ? "number" : "", "data-label": title }, show(order)),
  );
  return element("tr", { role: "row", "data-uid": order.order_uid }, cells);
}

/** Marks the rows whose orders are in `changed`. */
export function markChanged(root, changed) {
  for (const row of root.querySelectorAll("tr[data-uid]")) {
    if (!changed.has(row.dataset.uid) || row.querySelector(".changed")) continue;
    row.querySelector("a.uid").after(" ", element("span", { className: "changed" }, "changed"));
  }
}
