/**
 * The page of the order service. It finds orders, shows one, lists the newest, and shows the state of the cache.
 *
 * Two rules hold in all of its modules:
 * - The content of orders enters the page as text only (`scripts/dom.js`).
 * - The page is never blank and never silent. Every request ends in content, in an empty state, or in a problem that says
 *   what to do and shows the request id, by which the request is found in the log.
 *
 * A module imports only modules above it in this list: dom, format, access, client, view, event_stream, follower, feed,
 * address, summary_table, kinds, orders, order, search, token_form, status.
 */

import { ACCESS, denied, onAccess } from "./scripts/access.js";
import { followAddress } from "./scripts/address.js";
import { connection } from "./scripts/client.js";
import { byId } from "./scripts/dom.js";
import { follow, noteReading, startFeed, stopFeed } from "./scripts/feed.js";
import { noteChangeOfOrder, orderView, reopenOrder, showOrderOf } from "./scripts/order.js";
import { listView, loadList, noteChangesOfList, reloadList, startList } from "./scripts/orders.js";
import { closeSearch, searchView, startSearch } from "./scripts/search.js";
import { poll, startStatus } from "./scripts/status.js";
import { startTokenForm } from "./scripts/token_form.js";

const VIEWS = [orderView, searchView, listView];

function onChange(uids) {
  noteChangeOfOrder(uids);
  noteChangesOfList(uids);
}

/** Reads all that is shown again, because nobody knows what has changed. */
function readAgain() {
  orderView.repeat();
  searchView.repeat();
  loadList();
  poll();
}

/** Repeats what has failed while the service was away. */
function retry() {
  for (const view of VIEWS) view.retryIfUnsettled();
  poll();
}

/** Begins anew with another token, or without one. Nothing is left of what was read before. */
async function restart() {
  await follow();
  noteReading();
  reopenOrder();
  reloadList();
  poll();
}

function onAccessChange(change) {
  if (change === ACCESS.denied) {
    stopFeed(denied());
    return;
  }
  if (change === ACCESS.forgotten) {
    closeSearch();
    byId("query").value = "";
    for (const view of VIEWS) view.clear();
  }
  restart();
}

async function start() {
  startTokenForm();
  startSearch();
  startList();
  startStatus();
  startFeed({ onChange, onReadAgain: readAgain, onLive: retry });
  onAccess(onAccessChange);
  connection.onRestore.push(retry);
  document.addEventListener("visibilitychange", () => poll());
  window.addEventListener("offline", () => connection.lose());
  window.addEventListener("online", () => poll());
  await follow(); // First, so that no change is missed between reading and following.
  noteReading();
  followAddress(showOrderOf);
  loadList({ keep: false });
}

start();
