// The calls of a small front end, by a client whose types are generated from openapi.json. It runs against a real api, which
// has the orders uid-1 to uid-5. The settings are API_URL and API_TOKEN.

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string | undefined> };

type Schemas = components["schemas"];
type Listed = Schemas["OrderPage"] | Schemas["SummaryPage"] | Schemas["NamedOrders"];

/** Answers are JSON. The other types of a list are for downloads. */
type Json = "application/json" | "application/problem+json";

const settings = {
  baseUrl: process.env["API_URL"] ?? "http://localhost:8081",
  // `order_uids=a,b`, as the description says.
  querySerializer: { array: { style: "form", explode: false } },
} as const;
const stranger = createClient<paths, Json>(settings);
const client = createClient<paths, Json>({
  ...settings,
  headers: { Authorization: `Bearer ${process.env["API_TOKEN"]}` },
});

function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

function equal<T>(actual: T, expected: T, what: string) {
  must(actual === expected, `${what}: ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`);
}

function etagOf(response: Response): string {
  const etag = response.headers.get("ETag");
  must(etag !== null, `${response.url} has no ETag`);
  return etag;
}

function isSummaryPage(page: Listed): page is Schemas["SummaryPage"] {
  return page.orders.every((order) => "items_count" in order);
}

function isNamed(page: Listed): page is Schemas["NamedOrders"] {
  return "missing" in page;
}

async function walkTheList() {
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const query: { limit: number; cursor?: string; count: "exact" } = { limit: 2, count: "exact" };
    if (cursor !== null) query.cursor = cursor;
    const { data } = await client.GET("/api/v1/orders", { params: { query } });
    must(data !== undefined && !isNamed(data), "a page");
    equal(data.total?.value, 5, "the number of orders");
    seen.push(...data.orders.map((order) => order.order_uid));
    cursor = data.next_cursor;
  } while (cursor !== null);
  equal(new Set(seen).size, 5, "orders on all pages");
}

async function showSummaries() {
  const { data } = await client.GET("/api/v1/orders", { params: { query: { view: "summary" } } });
  must(data !== undefined && isSummaryPage(data), "summaries");
  const first = data.orders[0];
  must(first !== undefined && first.amount >= 0 && first.currency.length === 3, "an amount");
  // The summary's tag is that of the order, so nothing is sent again that is known.
  const path = { order_uid: first.order_uid };
  const header = { "If-None-Match": first.etag };
  const { response } = await client.GET("/api/v1/orders/{order_uid}", { params: { path, header } });
  equal(response.status, 304, "the status of an order that is known");
}

async function fetchNamedOrders() {
  const query = { order_uids: ["uid-2", "absent", "uid-1"] };
  const { data } = await client.GET("/api/v1/orders", { params: { query } });
  must(data !== undefined && isNamed(data), "named orders");
  equal(data.orders.map((order) => order.order_uid).join(), "uid-2,uid-1", "orders");
  equal(data.missing.join(), "absent", "missing orders");
}

async function searchByPhone() {
  const path = { order_uid: "uid-3" };
  const { data: order } = await client.GET("/api/v1/orders/{order_uid}", { params: { path } });
  must(order !== undefined, "an order");
  const body: Schemas["Search"] = { phone: order.delivery.phone, view: "summary" };
  const { data } = await client.POST("/api/v1/orders/search", { body });
  must(data !== undefined && isSummaryPage(data), "summaries");
  must(data.orders.some((found) => found.order_uid === "uid-3"), "the order with this phone number");
  const { error } = await client.POST("/api/v1/orders/search", { body: { order_uid_prefix: "" } });
  must(error !== undefined && error.status === 400, "a refusal");
}

async function editOneOrder() {
  const path = { order_uid: "uid-1" };
  const read = await client.GET("/order/{order_uid}", { params: { path } });
  must(read.data !== undefined, "an order");
  const header = { "If-Match": etagOf(read.response) };
  const order: Schemas["Order"] = { ...read.data, locale: "de" };
  // What is read can be sent back.
  const put = () => client.PUT("/api/v1/orders/{order_uid}", { params: { path, header }, body: order });
  const written = await put();
  equal(written.data?.locale, "de", "the locale");
  const lost = await put();
  equal(lost.response.status, 412, "the status of a lost update");
  must(lost.error?.code === "version_mismatch", "version_mismatch");
  equal(etagOf(lost.response), etagOf(written.response), "the present ETag");
}

async function createPatchAndDelete() {
  const body: Schemas["OrderInput"] = {
    order_uid: "new",
    track_number: "WBILMTESTTRACK",
    customer_id: "test",
    date_created: "2021-11-26T06:22:19Z",
    payment: { transaction: "t", currency: "USD", provider: "wbpay", amount: 1817 },
    items: [{ chrt_id: 9934930, name: "Mascaras", brand: "Vivienne Sabo", price: 453, total_price: 317 }],
  };
  const created = await client.POST("/api/v1/orders", { body });
  equal(created.response.status, 201, "the status of a creation");
  equal(created.response.headers.get("Location"), "/api/v1/orders/new", "Location");
  const again = await client.POST("/api/v1/orders", { body });
  must(again.error?.code === "order_exists", "order_exists");

  const path = { order_uid: "new" };
  const patch = (body: Schemas["OrderPatch"], etag: string) =>
    client.PATCH("/api/v1/orders/{order_uid}", {
      params: { path, header: { "If-Match": etag } },
      headers: { "Content-Type": "application/merge-patch+json" },
      body,
    });
  const patched = await patch({ delivery: { city: "Haifa" }, items: body.items }, etagOf(created.response));
  equal(patched.data?.delivery.city, "Haifa", "the city");
  equal(patched.data?.payment.amount, 1817, "the amount");
  const refused = await patch({ payment: { currency: "shekel" } }, etagOf(patched.response));
  must(refused.error?.code === "invalid_order", "invalid_order");
  equal(refused.error.errors[0]?.pointer, "/payment/currency", "the pointer of the fault");

  const deleted = await client.DELETE("/api/v1/orders/{order_uid}", { params: { path } });
  equal(deleted.response.status, 204, "the status of a deletion");
  const gone = await client.GET("/api/v1/orders/{order_uid}", { params: { path } });
  must(gone.error?.code === "order_not_found", "order_not_found");
}

async function readWithoutAToken() {
  const { error } = await stranger.GET("/order/{order_uid}", { params: { path: { order_uid: "uid-1" } } });
  must(error?.code === "unauthorized", "unauthorized");
}

// Never called: it compiles only if the types refuse what the api refuses.
export async function whatDoesNotCompile() {
  const path = { order_uid: "uid-1" };
  // @ts-expect-error There is no such path.
  await client.GET("/api/v1/order/{order_uid}", { params: { path } });
  // @ts-expect-error The path has no such method.
  await client.PATCH("/api/v1/orders", { body: {} });
  // @ts-expect-error There is no such view.
  await client.GET("/api/v1/orders", { params: { query: { view: "short" } } });
  // @ts-expect-error There is no such parameter.
  await client.GET("/api/v1/orders", { params: { query: { page: 2 } } });
  // @ts-expect-error An order needs more.
  await client.POST("/api/v1/orders", { body: { order_uid: "new" } });
  // @ts-expect-error The amount is a number.
  await client.PATCH("/api/v1/orders/{order_uid}", { params: { path }, body: { payment: { amount: "1" } } });
  // @ts-expect-error An e-mail address is a text.
  await client.PATCH("/api/v1/orders/{order_uid}", { params: { path }, body: { delivery: { email: 1 } } });
  const { data, error } = await client.GET("/api/v1/orders/{order_uid}", { params: { path } });
  // @ts-expect-error An order has no such field.
  data?.price;
  // @ts-expect-error This code belongs to another method.
  return error?.code === "order_exists";
}

await walkTheList();
await showSummaries();
await fetchNamedOrders();
await searchByPhone();
await editOneOrder();
await createPatchAndDelete();
await readWithoutAToken();
