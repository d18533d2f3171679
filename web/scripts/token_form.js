/** Asks for a token where the service needs one, and lets people forget it. */

import { ACCESS, denied, forgetToken, hasToken, onAccess, useToken } from "./access.js";
import { asFailure, request } from "./client.js";
import { announce, byId, capitalised, onSubmit } from "./dom.js";

/** What may stand in the header `Authorization`. */
const TOKEN = /^[\x21-\x7e]+$/;

const HEADINGS = {
  needed: "This server needs a token",
  refused: "The server refuses this token",
  scope: "This token does not allow reading",
};
const REASONS = {
  needed: "Orders are personal data, so this server shows them only to people with a token.",
  refused: "It may be mistyped, or it was withdrawn. Enter another one.",
};

export function startTokenForm() {
  onSubmit("token-form", submit);
  byId("token-cancel").addEventListener("click", close);
  byId("token-forget").addEventListener("click", forget);
  onAccess((change) => {
    byId("token-state").hidden = !hasToken();
    if (change !== ACCESS.denied) {
      close();
      return;
    }
    const { kind, text } = denied();
    if (kind in HEADINGS) open(HEADINGS[kind], REASONS[kind] ?? text, kind !== "needed");
  });
}

/** Opens the form for somebody who wants to use another token. */
export function askForToken() {
  open("Use another token", "It replaces the one in use.", false);
  byId("token-cancel").hidden = false;
  byId("token").focus();
}

function open(heading, reason, isError) {
  byId("access-heading").textContent = heading;
  byId("token-why").textContent = capitalised(reason);
  byId("token-why").className = isError ? "field-error" : "";
  byId("token").setAttribute("aria-invalid", String(isError));
  byId("token-cancel").hidden = true;
  byId("access").hidden = false;
  announce(`${heading}. ${reason}`);
  if (document.activeElement === document.body) byId("token").focus(); // But nobody is torn away from what they do.
}

function close() {
  if (byId("access").contains(document.activeElement)) byId("main").focus(); // The focus must not disappear with the form.
  byId("access").hidden = true;
  byId("token").value = "";
  byId("token").setAttribute("aria-invalid", "false");
}

/** Tries a token and uses it if the service accepts it. The statistics need no more than the scope `read`. */
async function submit() {
  if (byId("token-submit").getAttribute("aria-disabled") === "true") return;
  const token = byId("token").value.trim();
  if (!TOKEN.test(token)) {
    open("This cannot be a token", "A token has only letters, digits and signs of ASCII, and no blanks.", true);
    byId("token").focus();
    return;
  }
  byId("token-submit").setAttribute("aria-disabled", "true");
  try {
    await request("/api/v1/cache/stats", { bearer: token });
    useToken(token);
    announce("The server accepts the token.");
  } catch (error) {
    refuse(asFailure(error));
  } finally {
    byId("token-submit").setAttribute("aria-disabled", "false");
  }
}

function refuse(failure) {
  if (failure.status === 401) open(HEADINGS.refused, REASONS.refused, true);
  else if (failure.code === "insufficient_scope") open(HEADINGS.scope, failure.message, true);
  else open("The token could not be checked", failure.message, true);
  byId("token").focus();
  byId("token").select();
}

function forget() {
  forgetToken();
  announce("The token is forgotten.");
}
