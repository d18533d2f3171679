/**
 * The token, and whether the service lets this page read.
 *
 * The token stands in a variable of this module and nowhere else: not in the address, a cookie or the browser's storage. It is
 * gone when the page is loaded again.
 */

let token = "";
let denial = null;
const callbacks = [];

/** What `onAccess` callbacks are told. */
export const ACCESS = {
  /** A token was accepted, or reads work again. What is shown should be read. */
  granted: "granted",
  /** The service refuses reads. `denied()` says why. */
  denied: "denied",
  /** The token was forgotten. What was read with it should no longer be shown. */
  forgotten: "forgotten",
};

export function onAccess(callback) {
  callbacks.push(callback);
}

export function hasToken() {
  return token !== "";
}

/** Returns the token as it goes into the header `Authorization` (RFC 6750, section 2.1), or "" if there is none. */
export function authorization() {
  return token === "" ? "" : `Bearer ${token}`;
}

/** Returns why the service refuses reads: `{ kind, text }`, or null. `kind` is "needed" or "refused" (a token), "scope" or "disabled". */
export function denied() {
  return denial;
}

/** Notes that an answer to a request with this `Authorization` refuses reads. Answers to an older token count for nothing. */
export function deny(kind, text, sent) {
  if (sent !== authorization()) return;
  if (kind === "needed" && denial?.kind === "refused") return; // The refused token is gone, but people should still be told.
  if (kind === "refused") token = "";
  if (denial?.kind === kind && denial.text === text) return;
  denial = { kind, text };
  tell(ACCESS.denied);
}

/** Notes that a read with this `Authorization` was allowed. */
export function allow(sent) {
  if (denial === null || sent !== authorization()) return;
  denial = null;
  tell(ACCESS.granted);
}

/** Uses a token that the service has accepted. */
export function useToken(accepted) {
  token = accepted;
  denial = null;
  tell(ACCESS.granted);
}

export function forgetToken() {
  token = "";
  denial = null;
  tell(ACCESS.forgotten);
}

function tell(change) {
  for (const callback of callbacks) callback(change);
}
