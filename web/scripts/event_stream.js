/**
 * Reads a stream of Server-Sent Events, as the HTML standard says (section "Interpreting an event stream").
 *
 * Browsers have EventSource for this, but it sends no token, and it never comes back after an answer other than 200.
 */

/** No event of the service is nearly as long. A stream that brings more without a line's end is none of its streams. */
export const LINE_MAX = 4 * 1024 * 1024;

export class EventStreamParser {
  #decoder = new TextDecoder(); // It also drops a byte order mark at the beginning.
  #rest = ""; // The beginning of a line whose end has not come.
  #followsCr = false; // The last line ended with CR, so an LF that follows belongs to it.
  #data = [];
  #type = "";
  #id;

  /** `onEvent({ type, data, id })` gets each event, `onId(id)` each id, `onRetry(milliseconds)` each wish of the service. */
  constructor({ onEvent, onId = () => {}, onRetry = () => {}, lastEventId = "" }) {
    this.onEvent = onEvent;
    this.onId = onId;
    this.onRetry = onRetry;
    this.#id = lastEventId;
  }

  /** Takes the next bytes, which may end anywhere. */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return;
    if (this.#followsCr && text.startsWith("\n")) text = text.slice(1);
    this.#followsCr = text === "" ? false : text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#rest + lines[0];
    this.#rest = lines.pop();
    if (this.#rest.length > LINE_MAX) throw new Error("a line of the stream has no end");
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      this.#dispatch();
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // A comment.
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.onRetry(Number(value));
  }

  /** A blank line ends an event. Its id counts even if it has no data. */
  #dispatch() {
    const [data, type] = [this.#data.join("\n"), this.#type || "message"];
    const isEmpty = this.#data.length === 0 || data === "";
    this.#data = [];
    this.#type = "";
    this.onId(this.#id);
    if (!isEmpty) this.onEvent({ type, data, id: this.#id });
  }
}
