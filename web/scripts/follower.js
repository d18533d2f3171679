/**
 * Follows the live feed. It comes back after every interruption, and says in which state it is.
 *
 * The feed's ids let it continue without a loss: it sends the last one as `Last-Event-ID`. If the service no longer knows what
 * came after it, the service sends the event `resync`.
 */

import { EventStreamParser } from "./event_stream.js";

/** The service answers at once. An attempt that waits for longer is given up, so that a new one reaches a new process. */
export const CONNECT_TIMEOUT_MS = 5000;
/** The service sends a comment every 15 s. A connection that is silent for longer than two of them is dead. */
export const SILENCE_MS = 40_000;
/** A stream that lasted for less counts as a failed attempt, so that a service that ends each one is not asked incessantly. */
export const STABLE_MS = 5000;
const FIRST_DELAY_MS = 250;
/** The longest wait. Together with a failed attempt it is below 10 s, in which the page shall be fresh after an outage. */
export const DELAY_MAX_MS = 4000;
/** For how long the service can make the page wait by `Retry-After`. */
const RETRY_AFTER_MAX_MS = { 429: 60_000, 503: 5000 };
/** A tab that is hidden for this long gives its connection back, because browsers allow six to one server. */
export const HIDDEN_MS = 60_000;

/** Returns the wait before the next attempt. Half of it is left to chance, so that a thousand pages do not come back at once. */
export function delayOf(attempts, longest = DELAY_MAX_MS, random = Math.random()) {
  const delay = Math.min(FIRST_DELAY_MS * 2 ** Math.min(attempts, 20), longest);
  return Math.round(delay * (0.5 + random / 2));
}

export class Follower {
  #lastEventId = "";
  #attempts = 0;
  #longestDelay = DELAY_MAX_MS;
  #run = null; // The AbortController of the running loop.
  #wake = () => {};
  #hiddenTimer;
  #mayHaveMissed = false;

  /**
   * `connect(headers, signal)` opens the stream: it returns a response of status 200, or throws. An error with `stop` ends the
   * following; `retryAfterS` postpones the next attempt. `onEvent({ type, data })` gets the events, `onGap()` is called when
   * events may have been missed, and `onState({ name, ... })` gets each change: "connecting", "live", "waiting" (`delayMs`, `why`),
   * "paused", "stopped" (`why`).
   */
  constructor({ connect, onEvent, onGap, onState, now = () => performance.now() }) {
    Object.assign(this, { connect, onEvent, onGap, onState, now });
  }

  /** Begins anew at once, for somebody who has read nothing yet. */
  start() {
    this.#lastEventId = "";
    this.#mayHaveMissed = false;
    this.#begin();
  }

  /** Does not wait any longer, if it waits. */
  hurry() {
    this.#wake();
  }

  /** Says that something is read now. If the feed is not live yet, a change after the reading may be missed. */
  noteReading() {
    if (this.state !== "live") this.#mayHaveMissed = true;
  }

  stop(why) {
    this.#end();
    this.#tell({ name: "stopped", why });
  }

  /** Pauses in a tab that stays hidden, and continues when the tab is shown. */
  setHidden(isHidden) {
    clearTimeout(this.#hiddenTimer);
    if (isHidden) {
      this.#hiddenTimer = setTimeout(() => this.#pause(), HIDDEN_MS);
    } else if (this.state === "paused") {
      this.#begin();
    } else {
      this.hurry();
    }
  }

  #pause() {
    if (this.#run === null) return;
    this.#end();
    this.#tell({ name: "paused" });
  }

  #begin() {
    this.#end();
    this.#run = new AbortController();
    this.#attempts = 0;
    this.#loop(this.#run.signal);
  }

  #end() {
    this.#run?.abort();
    this.#run = null;
  }

  #tell(state) {
    this.state = state.name;
    this.onState(state);
  }

  async #loop(signal) {
    while (!signal.aborted) {
      this.#tell({ name: "connecting" });
      const end = await this.#follow(signal);
      if (signal.aborted) return;
      if (end.stop) {
        this.stop(end.message);
        return;
      }
      const asked = Math.min((end.retryAfterS ?? 0) * 1000, RETRY_AFTER_MAX_MS[end.status] ?? 0);
      const delayMs = Math.max(delayOf(this.#attempts, this.#longestDelay), asked);
      this.#attempts += 1;
      this.#tell({ name: "waiting", delayMs, why: end.message });
      await this.#wait(delayMs, signal);
    }
  }

  /** Follows one connection until it ends, and returns the error that ended it. */
  async #follow(signal) {
    const attempt = new AbortController();
    const cutAfter = (milliseconds, why) => setTimeout(() => attempt.abort(new Error(why)), milliseconds);
    let watchdog = cutAfter(CONNECT_TIMEOUT_MS, "the service does not answer");
    let liveSince = Infinity;
    try {
      const headers = { Accept: "text/event-stream", ...(this.#lastEventId && { "Last-Event-ID": this.#lastEventId }) };
      const response = await this.connect(headers, AbortSignal.any([signal, attempt.signal]));
      if (!/^text\/event-stream\b/.test(response.headers.get("content-type") ?? "")) throw new Error("the answer is no stream of events");
      liveSince = this.now();
      this.#tell({ name: "live" });
      if (this.#mayHaveMissed && !this.#lastEventId) this.onGap();
      this.#mayHaveMissed = false;
      const parser = this.#parser();
      const reader = response.body.getReader();
      for (;;) {
        clearTimeout(watchdog);
        watchdog = cutAfter(SILENCE_MS, "the connection is silent");
        const { done, value } = await reader.read();
        if (done) return new Error("the connection has ended");
        parser.push(value);
      }
    } catch (error) {
      // fetch does not tell the reason of an abort in all browsers.
      return attempt.signal.aborted ? attempt.signal.reason : error;
    } finally {
      clearTimeout(watchdog);
      attempt.abort();
      const wasLive = liveSince < Infinity;
      if (wasLive) this.#mayHaveMissed = true;
      if (wasLive && this.now() - liveSince >= STABLE_MS) this.#attempts = 0;
    }
  }

  #parser() {
    return new EventStreamParser({
      lastEventId: this.#lastEventId,
      onEvent: (event) => this.onEvent(event),
      onId: (id) => (this.#lastEventId = id),
      // A service may want less haste, but not so little that the page is stale for long.
      onRetry: (milliseconds) => (this.#longestDelay = Math.min(Math.max(milliseconds, FIRST_DELAY_MS), DELAY_MAX_MS)),
    });
  }

  #wait(milliseconds, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      signal.addEventListener("abort", this.#wake, { once: true });
    });
  }
}
