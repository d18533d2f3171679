/** Shows the outcome of requests in a part of the page. No part is ever blank or silent. */

import { asFailure } from "./client.js";
import { announce, capitalised, code, copyButton, element, hidden, shown } from "./dom.js";

const BUSY_AFTER_MS = 150; // For faster answers the page would only flicker.

/**
 * A part of the page that shows the outcome of its newest request. An older request that is still running is dropped. A
 * slow request shows that it is running. After a 503 or 429 the request is repeated when `Retry-After` has passed.
 */
export class View {
  constructor(body, loadingText) {
    this.body = body;
    this.loadingText = loadingText;
    this.isSettled = true; // Whether the newest request has brought what it should.
  }

  /**
   * Runs `load(signal)`, then `show(result)`. `explain(failure)` may make a box for a failure. With `keep` the old content
   * stays while the request runs. Returns true on success.
   */
  async run(load, show, { explain, keep = false } = {}) {
    this.cancel();
    const controller = new AbortController();
    this.controller = controller;
    this.again = (options) => this.run(load, show, { explain, keep, ...options });
    this.isSettled = false;
    const busy = setTimeout(() => this.showBusy(keep), BUSY_AFTER_MS);
    try {
      const result = await load(controller.signal);
      if (controller.signal.aborted) return false;
      this.isSettled = true;
      keepingFocus(this.body, () => show(result));
      return true;
    } catch (error) {
      if (controller.signal.aborted) return false;
      const failure = asFailure(error);
      this.isSettled = !failure.mayPass;
      this.showFailure(failure, explain);
      return false;
    } finally {
      clearTimeout(busy);
      if (this.controller === controller) this.body.removeAttribute("aria-busy");
    }
  }

  cancel() {
    this.controller?.abort();
    clearInterval(this.ticker);
    this.isSettled = true;
  }

  /** Drops the content and the request behind it. */
  clear() {
    this.cancel();
    this.again = undefined;
    this.body.replaceChildren();
  }

  /** Repeats the newest request, if there was one. */
  repeat() {
    this.again?.({ keep: true });
  }

  /** Repeats a request that has failed for a reason that may have passed, or that still waits. */
  retryIfUnsettled() {
    if (!this.isSettled) this.again?.();
  }

  /** Shows that a request is running. With `keep` the old content stays readable. */
  showBusy(keep) {
    this.body.setAttribute("aria-busy", "true");
    if (!keep) this.body.replaceChildren(element("p", { className: "loading" }, this.loadingText));
    announce(this.loadingText);
  }

  showFailure(failure, explain) {
    const box = failure.status === 401 ? denialBox() : (explain?.(failure) ?? problemBox(failure));
    if (failure.retryAfterS !== null) this.countDown(failure.retryAfterS, box);
    if (!failure.isDenial && failure.status !== 404 && failure.status !== 400) box.append(element("p", { className: "actions" }, this.againButton()));
    keepingFocus(this.body, () => this.body.replaceChildren(box));
    announce(`${box.querySelector("h3")?.textContent ?? ""}. ${failure.message}`);
  }

  againButton() {
    const tryAgain = () => {
      this.body.tabIndex = -1; // The button disappears with the failure. The focus must not disappear with it.
      this.body.focus();
      this.again();
    };
    return element("button", { type: "button", onclick: tryAgain }, "Try again");
  }

  /** Counts down. Screen readers hear only the first number, because a running count would drown everything else. */
  countDown(seconds, box) {
    const left = element("span", {}, String(seconds));
    box.append(element("p", { "aria-hidden": "true" }, "Trying again in ", left, " s."), hidden(`Trying again in ${seconds} s.`));
    this.ticker = setInterval(() => {
      seconds -= 1;
      left.textContent = String(Math.max(seconds, 0));
      if (seconds <= 0 && !document.hidden) this.again();
    }, 1000);
  }
}

/** Replaces content by calling `replace`. If the focus was inside, it goes to the same link or button of the new content. */
function keepingFocus(body, replace) {
  const focused = document.activeElement;
  const isInside = body !== focused && body.contains(focused);
  replace();
  if (!isInside || focused.isConnected) return;
  const candidates = [...body.querySelectorAll("a[href], button, [tabindex]")];
  const same = candidates.find((each) => (focused.id ? each.id === focused.id : each.tagName === focused.tagName && each.textContent === focused.textContent));
  if (!same) body.tabIndex = -1;
  (same ?? body).focus({ preventScroll: true });
}

/** Says that a token is needed. The form at the top of the page says why, so this is short. */
function denialBox() {
  return element("div", { className: "empty" }, element("h3", {}, "This server needs a token"), element("p", {}, "Enter it in the form at the top of the page."));
}

/** Shows a problem: what happened, which fields are wrong, and the request id, which is found in the log. */
export function problemBox(failure, { title, hint } = {}) {
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
