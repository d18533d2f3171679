/** Connects the page with the live feed, and shows in words whether the feed is live. */

import { allow } from "./access.js";
import { connection, failureOf, send } from "./client.js";
import { announce, byId } from "./dom.js";
import { Follower } from "./follower.js";

/** For how long a page that opens waits for the feed. If it read earlier, it could miss a change between. */
const FIRST_OUTCOME_MS = 1000;
/** After a resync every open page reads again. Chance spreads them, so that they do not all come at once. */
const READ_AGAIN_SPREAD_MS = 1000;

let follower;
let ticker;
let readAgainTimer;
let wasInterrupted = false;
let onOutcome = () => {};

/**
 * `onChange(uids)` is called when orders have changed, and `onChange(null)` when any order may have changed. In the second case
 * `onReadAgain` follows. `onLive` is called when the feed is live after an interruption.
 */
export function startFeed({ onChange, onReadAgain, onLive }) {
  const mayDiffer = () => {
    onChange(null);
    clearTimeout(readAgainTimer);
    readAgainTimer = setTimeout(onReadAgain, Math.random() * READ_AGAIN_SPREAD_MS);
  };
  const onEvent = ({ type, data }) => {
    if (type === "resync") mayDiffer();
    if (type !== "order") return;
    const uids = uidsOf(data);
    if (uids === null) mayDiffer();
    else onChange(uids);
  };
  const onState = (state) => {
    showState(state);
    if (state.name !== "connecting") onOutcome();
    if (state.name === "live" && wasInterrupted) onLive();
    wasInterrupted = state.name === "waiting" || (wasInterrupted && state.name !== "live");
  };
  follower = new Follower({ connect, onEvent, onGap: mayDiffer, onState });
  document.addEventListener("visibilitychange", () => follower.setHidden(document.hidden));
  window.addEventListener("online", () => follower.hurry());
}

/** Follows the feed from now on. The promise is kept when the feed is live, or will not be live soon: now orders may be read. */
export function follow() {
  clearTimeout(readAgainTimer);
  return new Promise((resolve) => {
    onOutcome = resolve;
    setTimeout(resolve, FIRST_OUTCOME_MS);
    follower.start();
  });
}

/** Stops, because reads are denied. */
export function stopFeed({ kind }) {
  clearTimeout(readAgainTimer);
  follower.stop(DENIALS[kind]);
}

/** Says that orders are read now, so that a change is not missed if the feed is not live. */
export function noteReading() {
  follower.noteReading();
}

/** Returns the uids of an event's data, or null if it cannot be understood. */
function uidsOf(data) {
  try {
    const uids = JSON.parse(data).order_uids;
    return Array.isArray(uids) ? uids : null;
  } catch {
    return null;
  }
}

async function connect(headers, signal) {
  let answer;
  try {
    answer = await send("/api/v1/events", { headers, signal, cache: "no-store" });
  } catch {
    throw new Error("the service cannot be reached");
  }
  if (!answer.response.ok) {
    const failure = await failureOf(answer, { isRead: true });
    throw Object.assign(failure, { stop: failure.status === 401 || failure.status === 403 });
  }
  connection.restore();
  allow(answer.sent);
  return answer.response;
}

const WORDS = {
  connecting: ["unknown", "Connecting to live updates"],
  live: ["ok", "Live updates"],
  paused: ["unknown", "Live updates pause while the page is hidden"],
  stopped: ["bad", "Live updates have stopped"],
};

/** Why reads are denied, in a few words. What is shown in place of the orders says more. */
const DENIALS = {
  needed: "this server needs a token",
  refused: "the server refuses the token",
  scope: "the token does not allow reading",
  disabled: "the server refuses reads",
};

/** Shows the state. Screen readers hear only that updates were interrupted and that they are back, not each try. */
function showState(state) {
  clearInterval(ticker);
  const box = byId("feed");
  if (state.name === "waiting") {
    if (box.dataset.state === "live") announce("Live updates are interrupted. The page reconnects by itself.");
    countDown(state);
  } else if (!(state.name === "connecting" && wasInterrupted)) {
    const [level, words] = WORDS[state.name];
    if (state.name === "live" && wasInterrupted) announce("Live updates are back.");
    show(level, state.name === "stopped" ? `${words}: ${state.why}` : words, state.why);
  } else {
    show("warn", "Reconnecting to live updates", box.title);
  }
  box.dataset.state = state.name;
}

function countDown({ delayMs, why }) {
  const end = performance.now() + delayMs;
  const tick = () => show("warn", `Reconnecting in ${Math.max(Math.ceil((end - performance.now()) / 1000), 1)} s`, why);
  tick();
  ticker = setInterval(tick, 1000);
}

function show(level, words, why = "") {
  byId("feed").dataset.level = level;
  byId("feed").title = why;
  byId("feed-text").textContent = words;
}
