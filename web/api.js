/**
 * Shows /openapi.json in readable form: every operation with its parameters and answers, and every schema.
 *
 * It knows only those parts of OpenAPI 3.1 that this service's document uses. It needs no token, because the document is open.
 */

import { element } from "./scripts/dom.js";

const METHODS = ["get", "head", "post", "put", "patch", "delete", "options"];

/** Makes nodes of a text in which back-ticks mark code. */
function prose(text = "") {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function muted(text) {
  return element("span", { className: "muted" }, prose(text));
}

function table(heads, rows) {
  if (rows.length === 0) return null;
  const head = element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, cells.map((cell) => element("td", {}, cell))));
  return element("div", { className: "scroller" }, element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
}

/** Makes a section that opens when its summary is clicked. */
function fold(summary, ...content) {
  return element("details", { className: "fold" }, element("summary", {}, summary), element("div", { className: "fold-body" }, ...content));
}

/** Makes a section that opens when its summary is clicked or a link leads to it. */
function target(id, summary, ...content) {
  return Object.assign(fold(summary, ...content), { id });
}

function example(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return element("pre", { className: "raw", tabIndex: 0 }, text);
}

class Reference {
  constructor(spec) {
    this.spec = spec;
  }

  /** Follows a reference; returns everything else as it is. */
  resolve(part) {
    if (!part?.$ref) return part;
    return part.$ref.slice(2).split("/").reduce((node, key) => node[key.replaceAll("~1", "/").replaceAll("~0", "~")], this.spec);
  }

  /** Describes a schema in a few words. A named schema becomes a link. */
  type(schema) {
    if (!schema) return ["any"];
    if (schema.$ref) {
      const name = schema.$ref.match(/^#\/components\/schemas\/([^/]+)$/)?.[1];
      return name ? [element("a", { href: `#schema-${name}` }, name)] : this.type(this.resolve(schema));
    }
    if (schema.allOf) return schema.allOf.flatMap((each, index) => (index ? [", ", this.type(each)] : this.type(each))).flat();
    if (schema.anyOf && !schema.type) return schema.anyOf.flatMap((each, index) => [index ? " or " : "", ...this.type(each)]);
    if ("const" in schema) return [element("code", {}, JSON.stringify(schema.const))];
    if (schema.enum) return ["one of ", schema.enum.flatMap((each, index) => [index ? ", " : "", element("code", {}, String(each))])].flat();
    if (schema.type === "array") return ["array of ", ...this.type(schema.items), ...bounds(schema.minItems, schema.maxItems)];
    if (schema.properties && !schema.type) return this.properties(schema.properties);
    if (schema.type === "object" && schema.properties) return ["object: ", ...this.properties(schema.properties)];
    const type = [schema.type ?? "any"].flat().join(" or ");
    const rules = [...bounds(schema.minimum, schema.maximum), ...bounds(schema.minLength, schema.maxLength, " characters")];
    if (schema.format) rules.push(`, ${schema.format}`);
    if (schema.pattern) rules.push(", ", element("code", {}, schema.pattern));
    return [type, ...rules];
  }

  properties(properties) {
    return Object.entries(properties).flatMap(([name, schema], index) => [index ? "; " : "", element("code", {}, name), " ", ...this.type(schema)]);
  }

  parameters(parameters) {
    const rows = parameters.map((each) => this.resolve(each)).map((each) => [
      [element("code", {}, each.name), muted(each.required ? ` ${each.in}, required` : ` ${each.in}`)],
      this.type(each.schema),
      prose(each.description),
    ]);
    return table(["Parameter", "Type", ""], rows);
  }

  /** Describes the bodies of a request or an answer by their schemas and examples. */
  content(content = {}) {
    return Object.entries(content).flatMap(([type, { schema, example: single, examples = {} }]) => {
      const samples = single === undefined ? Object.values(examples).map((each) => this.resolve(each).value) : [single];
      const shown = samples.length === 0 ? null : fold(samples.length === 1 ? "Example" : "Examples", ...samples.map(example));
      return [element("p", {}, element("code", {}, type), ": ", ...this.type(schema)), shown];
    });
  }

  answer([status, response]) {
    const { description, headers = {}, content } = this.resolve(response);
    const rows = Object.entries(headers).map(([name, header]) => {
      const { required, schema, description } = this.resolve(header);
      return [[element("code", {}, name), required ? null : muted(" sometimes")], this.type(schema), prose(description)];
    });
    const family = { 2: "ok", 3: "info", 4: "warn", 5: "bad" }[status[0]];
    const badge = element("span", { className: "badge" }, element("span", { className: "dot" }), status);
    badge.dataset.level = family;
    return element("section", { className: "answer" }, element("h4", {}, badge, " ", ...prose(description)), ...this.content(content), rows.length ? fold("Headers", table(["Header", "Type", ""], rows)) : null);
  }

  operation(path, method, operation, shared) {
    const { operationId, summary, description, parameters = [], requestBody, responses, security } = operation;
    const title = [element("span", { className: `method method-${method}` }, method.toUpperCase()), " ", element("code", {}, path), " ", muted(summary)];
    const body = requestBody && this.resolve(requestBody);
    return target(
      operationId,
      title,
      description ? element("p", {}, ...prose(description)) : null,
      authority(security),
      this.parameters([...shared, ...parameters]),
      body ? element("section", { className: "answer" }, element("h4", {}, "Body"), ...this.content(body.content)) : null,
      ...Object.entries(responses).map((each) => this.answer(each)),
    );
  }

  schema([name, schema]) {
    const required = new Set(schema.required);
    const rows = Object.entries(schema.properties ?? {}).map(([property, each]) => [
      [element("code", {}, property), required.has(property) ? null : muted(" optional")],
      this.type(each),
      prose(each.description),
    ]);
    return target(`schema-${name}`, element("code", {}, name), element("p", {}, ...prose(schema.description)), table(["Field", "Type", ""], rows) ?? element("p", {}, ...this.type(schema)));
  }

  /** Makes the sections of the page: one per tag, then the schemas. */
  sections() {
    const operations = Object.entries(this.spec.paths).flatMap(([path, item]) =>
      METHODS.filter((method) => item[method]).map((method) => ({ tag: item[method].tags[0], node: this.operation(path, method, item[method], item.parameters ?? []) })),
    );
    const tags = this.spec.tags.map(({ name }) => ({ name, nodes: operations.filter(({ tag }) => tag === name).map(({ node }) => node) }));
    return [...tags, { name: "schemas", nodes: Object.entries(this.spec.components.schemas).map((each) => this.schema(each)) }];
  }
}

/** Says which scope a token must have. An empty requirement means that a server may work without tokens. */
function authority(security = []) {
  const scopes = security.flatMap((each) => Object.values(each).flat());
  if (scopes.length === 0) return null;
  const mayBeOpen = security.some((each) => Object.keys(each).length === 0);
  return element("p", { className: "muted" }, "Needs a bearer token with the scope ", element("code", {}, scopes.join(", ")), mayBeOpen ? " where the server has tokens." : ".");
}

function bounds(least, most, unit = "") {
  if (least === undefined && most === undefined) return [];
  return [`, ${least ?? ""}..${most === undefined ? "" : `=${most}`}${unit}`];
}

function show(spec) {
  const { title, description } = spec.info;
  const sections = new Reference(spec).sections();
  const panels = sections.map(({ name, nodes }) => element("section", { className: "panel" }, element("h2", { id: name }, name), ...nodes));
  document.getElementById("main").replaceChildren(element("section", { className: "panel" }, element("h2", {}, title), element("p", {}, ...prose(description))), ...panels);
  const contents = document.getElementById("contents");
  contents.replaceChildren(element("ul", {}, sections.map(({ name }) => element("li", {}, element("a", { href: `#${name}` }, name)))));
  contents.hidden = false;
}

/** Opens the section that the address names, and all sections around it. */
function follow() {
  const goal = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = goal; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  goal?.scrollIntoView();
}

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`the service answered with status ${response.status}`);
  show(await response.json());
  follow();
  addEventListener("hashchange", follow);
} catch (error) {
  const text = `The description of the API could not be loaded: ${error.message}. Reload the page to try again.`;
  document.getElementById("main").replaceChildren(element("p", { className: "empty", role: "alert" }, text));
}
