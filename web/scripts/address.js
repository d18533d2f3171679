/** Which order the page's address names. The address holds an order's id and nothing else: no search, no personal data. */

import { byId } from "./dom.js";

const ORDER_UID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

let routed; // The uid in the address when the page last followed it. A mere change of the fragment (the skip link) is no move.
let onRoute = () => {};

export function isUid(text) {
  return ORDER_UID.test(text);
}

/** Returns the uid of the order that the page shows, or "" if it shows none. */
export function shownUid() {
  return routed;
}

export function orderLink(uid) {
  return `/?uid=${encodeURIComponent(uid)}`;
}

/** Goes to an order; null is the page without one. */
export function navigate(uid) {
  const address = uid === null ? "/" : orderLink(uid);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  route({ move: true });
}

/** Calls `callback({ uid, left, move })` whenever the address names something else, and at once. `left` is the former uid. */
export function followAddress(callback) {
  onRoute = callback;
  window.addEventListener("popstate", () => {
    if (uidOfAddress() !== routed) route({ move: false });
  });
  document.addEventListener("click", followLink);
  route({ move: false });
}

function uidOfAddress() {
  return new URLSearchParams(location.search).get("uid") ?? "";
}

function route({ move }) {
  const left = routed;
  routed = uidOfAddress();
  onRoute({ uid: routed, left, move });
}

/** Opens links to orders in this page, unless a new tab is requested. */
function followLink(event) {
  const link = event.target.closest("a[href^='/?uid='], a.brand");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  navigate(new URL(link.href).searchParams.get("uid"));
}

/** Finds the link by which the reader opened an order, if it is still on the page. */
export function linkTo(uid) {
  return uid ? byId("main").querySelector(`a.uid[href="${CSS.escape(orderLink(uid))}"]`) : null;
}
