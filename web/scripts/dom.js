/**
 * Makes elements. Nothing else in the page makes them.
 *
 * The content of orders comes from strangers. It enters the page as text nodes only, and nothing parses markup. The server's
 * Content-Security-Policy also forbids inline scripts and styles, and strings that would be parsed.
 */

export const byId = (id) => document.getElementById(id);

/** Makes an element. `properties` are DOM properties; a name that has a dash or is `role` is an attribute. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else if (name === "onclick") node.addEventListener("click", value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const emptyValue = () =>
  element("span", { className: "muted" }, element("span", { "aria-hidden": "true" }, "—"), hidden("empty"));

/** Makes a text that only assistive technology presents. */
export function hidden(text) {
  return element("span", { className: "visually-hidden" }, text);
}

/** Shows a field of an order as text, whatever it contains. */
export function shown(value) {
  if (value === undefined || value === null || value === "") return emptyValue();
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Shows an identifier: monospaced, and it may break anywhere. */
export function code(value) {
  const content = shown(value);
  return typeof content === "string" ? element("code", {}, content) : content;
}

/** Makes a list of labels and values. */
export function fields(pairs) {
  const rows = pairs.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value)));
  return element("dl", { className: "fields" }, rows);
}

/** Tells assistive technology a text without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

export function capitalised(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Calls `action` with the form instead of sending the form. */
export function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action(event.target);
  });
}

/** Makes a button that copies a text, shows the outcome as its own label, and then gets its old label back. */
export function copyButton(label, text, what) {
  const button = element("button", { type: "button", className: "quiet" }, label, what ? hidden(` ${what}`) : null);
  button.addEventListener("click", async () => {
    const isDone = await copy(text());
    const note = isDone ? "Copied" : "Copying failed";
    announce(note);
    const original = [...button.childNodes];
    if (button.dataset.noted) return;
    button.dataset.noted = "yes";
    button.replaceChildren(note);
    setTimeout(() => {
      button.replaceChildren(...original);
      delete button.dataset.noted;
    }, 1500);
  });
  return button;
}

/** Copies a text. The clipboard API exists only on https and localhost. Elsewhere the old command still works. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = element("textarea", { value: text, readOnly: true, className: "visually-hidden" });
    document.body.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isDone;
  }
}
