/** Sends requests to the service, and knows whether it answers at all. */

import { allow, authorization, deny } from "./access.js";
import { announce, byId } from "./dom.js";

const REQUEST_TIMEOUT_MS = 20_000; // Longer than any timeout of the service, so that the service's own answer comes first.
const RETRY_DEFAULT_S = 5;
const RETRY_MAX_S = 300;
/** A failure with one of these statuses may pass. 0 is no answer at all. */
const PASSING = [0, 429, 502, 503, 504];

/** Why a request brought no content. Its `status` is 0 if the service did not answer at all. */
export class Failure extends Error {
  constructor(status, problem = {}, headers = new Headers()) {
    super(problem.detail ?? problem.title ?? `the service answered with status ${status}`);
    this.status = status;
    this.title = problem.title;
    this.code = problem.code;
    this.errors = Array.isArray(problem.errors) ? problem.errors : [];
    this.requestId = problem.request_id ?? headers.get("x-request-id");
    this.retryAfterS = status === 503 || status === 429 ? retryAfter(headers) : null;
  }

  /** Whether the same request may succeed later. */
  get mayPass() {
    return PASSING.includes(this.status);
  }

  /** Whether only another token, or none, would help. */
  get isDenial() {
    return this.status === 401 || this.code === "insufficient_scope";
  }
}

/** Makes a failure of any error. An error of this page itself is also written to the browser's console. */
export function asFailure(error) {
  if (error instanceof Failure) return error;
  console.error(error);
  return new Failure(-1, { title: "This page has an error", detail: error.message });
}

/** Reads the seconds from `Retry-After`, which may also be a date. */
function retryAfter(headers) {
  const value = headers.get("retry-after") ?? "";
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), RETRY_MAX_S) : RETRY_DEFAULT_S;
}

/**
 * Sends a request with the token, and returns the response. Every request of the page goes through here, the feed's, too.
 * What was read with a token does not enter the browser's cache, which outlives the page. `bearer` is used in place of the
 * token.
 */
export async function send(path, { headers = {}, bearer, cache, ...options } = {}) {
  const sent = bearer === undefined ? authorization() : `Bearer ${bearer}`;
  const response = await fetch(path, {
    ...options,
    cache: sent ? "no-store" : cache,
    headers: sent ? { ...headers, Authorization: sent } : headers,
  });
  return { response, sent };
}

/** Makes the failure that a response reports, and notes whether it refuses reads. `isRead` is whether it was a read. */
export async function failureOf({ response, sent }, { isRead }) {
  const text = await response.text().catch(() => "");
  const failure = new Failure(response.status, parseJson(response, text) ?? {}, response.headers);
  const isProxy = response.status >= 502 && !failure.code;
  if (isProxy) connection.lose(`Something in front of the service answers in its place (status ${response.status}).`);
  if (response.status === 401) deny(sent ? "refused" : "needed", failure.message, sent);
  if (isRead && response.status === 403) deny(failure.code === "insufficient_scope" ? "scope" : "disabled", failure.message, sent);
  return failure;
}

/**
 * Sends a request and returns `{ status, headers, body }`. Throws `Failure`, or the signal's reason if a newer request has
 * replaced this one. `accept` lists statuses besides 2xx that count as answers. `isOpen` says that the route needs no token.
 */
export async function request(path, { signal, accept = [], isOpen = false, ...options } = {}) {
  const timeout = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
  let answer, text;
  try {
    answer = await send(path, { ...options, signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
    if (!isAnswer(answer.response, accept)) {
      const failure = await failureOf(answer, { isRead: options.method !== "POST" || options.isRead });
      if (failure.code) connection.restore();
      throw failure;
    }
    text = await answer.response.text();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (error instanceof Failure) throw error;
    connection.lose();
    throw new Failure(0, { title: "No answer", detail: timeout.aborted ? "The service did not answer in time." : "The service cannot be reached." });
  }
  const { response, sent } = answer;
  connection.restore();
  if (!isOpen) allow(sent);
  const body = parseJson(response, text);
  if (body === undefined) throw new Failure(response.status, { title: "Unexpected answer", detail: "The service's answer was not JSON." }, response.headers);
  return { status: response.status, headers: response.headers, body };
}

/** Sends a search, whose body holds what must not stand in an address. Otherwise as `request`. */
export function search(body, { signal } = {}) {
  const headers = { "Content-Type": "application/json" };
  return request("/api/v1/orders/search", { method: "POST", isRead: true, headers, body: JSON.stringify(body), signal });
}

function isAnswer(response, accept) {
  return response.ok || accept.includes(response.status);
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
export const connection = {
  isLost: false,
  onRestore: [],
  lose(why = "The service does not answer.") {
    this.isLost = true;
    const banner = byId("offline");
    const text = navigator.onLine
      ? `${why} What you see may be out of date. The page tries again every few seconds.`
      : "You are offline. What you see may be out of date. The page continues when the network is back.";
    // The banner is an alert. It is read out again only if it says something else.
    if (banner.textContent !== text) banner.textContent = text;
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
