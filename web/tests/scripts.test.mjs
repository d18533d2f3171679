/** Tests the modules of the page that know neither the page nor the service. They need no browser. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./load.mjs";

const { EventStreamParser, LINE_MAX } = await load("event_stream");
const { clean, isPhone, kindsOf, uidOf } = await load("kinds");

const { allow, authorization, denied, deny, forgetToken, onAccess, useToken } = await load("access");

/** Parses chunks, and returns what the parser has told. */
function parse(chunks, { lastEventId } = {}) {
  const told = { events: [], ids: [], retries: [] };
  const parser = new EventStreamParser({
    lastEventId,
    onEvent: ({ type, data, id }) => told.events.push([type, data, id]),
    onId: (id) => told.ids.push(id),
    onRetry: (milliseconds) => told.retries.push(milliseconds),
  });
  for (const chunk of chunks) parser.push(typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk);
  return told;
}

const events = (text) => parse([text]).events;

test("the examples of the HTML standard are parsed as it says", () => {
  assert.deepEqual(events("data: YHOO\ndata: +2\ndata: 10\n\n"), [["message", "YHOO\n+2\n10", ""]]);
  assert.deepEqual(events(": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"), [
    ["message", "first event", "1"], ["message", "second event", ""], ["message", " third event", ""],
  ]);
  assert.deepEqual(events("data\n\ndata\ndata\n\ndata:"), [["message", "\n", ""]]);
  assert.deepEqual(events("data:test\n\ndata: test\n\n"), [["message", "test", ""], ["message", "test", ""]]);
});

test("a type counts for one event, unknown fields for none, and an event without its blank line does not count", () => {
  assert.deepEqual(events("event: order\ndata: a\nx: y\n\ndata: b\n\ndata: c\n"), [["order", "a", ""], ["message", "b", ""]]);
  assert.deepEqual(events("event: order\n\ndata: a\n\n"), [["message", "a", ""]]);
  assert.deepEqual(events("data: a:b\n\n"), [["message", "a:b", ""]]);
});

test("an id is kept until the next one, counts without data, and must not contain NUL", () => {
  assert.deepEqual(parse(["id: 7\n\ndata: a\n\nid: 8\0\ndata: b\n\n"]).events, [["message", "a", "7"], ["message", "b", "7"]]);
  assert.deepEqual(parse(["id: 7\n\nid: 8\n"]).ids, ["7"]);
  assert.deepEqual(parse(["data: a\n\n"], { lastEventId: "5" }).ids, ["5"]);
});

test("retry is a number of digits", () => {
  assert.deepEqual(parse(["retry: 3000\nretry: 1.5\nretry: -1\nretry:\nretry: 2e3\nretry:10\n"]).retries, [3000, 10]);
});

test("CR, LF and CRLF end a line, and a byte order mark is skipped", () => {
  const expected = [["order", "a\nb", "1"], ["message", "c", "1"]];
  for (const end of ["\n", "\r", "\r\n"]) {
    const text = ["\ufeffid: 1", "event: order", ":", "data: a", "data: b", "", "data: c", "", ""].join(end);
    assert.deepEqual(events(text), expected, JSON.stringify(end));
  }
  assert.deepEqual(events("data: a\r\rdata: b\n\r\n"), [["message", "a", ""], ["message", "b", ""]]);
});

test("chunks may end anywhere, within a character and within CRLF, too", () => {
  for (const end of ["\n", "\r", "\r\n"]) {
    const text = ["retry: 10", "id: 1", "event: order", 'data: {"a":"ä€😀"}', "", ": comment", "data: b", "data", "", ""].join(end);
    const bytes = new TextEncoder().encode(text);
    const whole = parse([bytes]);
    assert.equal(whole.events.length, 2);
    for (let first = 0; first <= bytes.length; first += 1) {
      for (const second of [first, first + 1, first + 3, bytes.length]) {
        const chunks = [bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)];
        assert.deepEqual(parse(chunks), whole, `${JSON.stringify(end)} cut at ${first} and ${second}`);
      }
    }
    assert.deepEqual(parse([...bytes].map((byte) => Uint8Array.of(byte))), whole);
  }
});

test("a line without an end is refused", () => {
  assert.throws(() => parse(Array(LINE_MAX / 65536 + 1).fill("x".repeat(65536))), /no end/);
});

test("a text is cleaned of what comes with pasting", () => {
  assert.equal(clean(' "b563",\u200b '), "b563");
  assert.equal(clean("«+7 912\n345»;"), "+7 912 345");
  assert.equal(clean("a'b"), "a'b");
});

test("a text is searched for as everything that it may be", () => {
  const kinds = (text) => kindsOf(text).map(({ kind }) => kind).join(" ");
  assert.equal(kinds("b563feb7"), "customer_id order_uid_prefix track_number_prefix");
  assert.equal(kinds("+7 (912) 345-67-89"), "phone customer_id track_number_prefix");
  assert.equal(kinds("79123456789"), "phone customer_id order_uid_prefix track_number_prefix");
  assert.equal(kinds("a@b.example"), "email customer_id track_number_prefix");
  assert.equal(kinds("b56"), "customer_id order_uid_prefix track_number_prefix");
  assert.equal(kinds("b5"), "customer_id track_number");
  assert.equal(kinds(""), "");
  assert.equal(kinds("x".repeat(257)), "");
});

test("what may be a phone number is not looked up as an order's id, because ids stand in addresses", () => {
  assert.equal(uidOf("b563feb7 b2b84b6test"), "b563feb7b2b84b6test");
  assert.equal(uidOf("1234"), "1234");
  for (const text of ["79123456789", "12345", "912-345-67", "a@b.example", "-a", "a/b"]) assert.equal(uidOf(text), null, text);
  assert.ok(isPhone("+1 800.555/12#3") && !isPhone("1-2-3-4") && !isPhone("5".repeat(33)));
});

test("an answer to a former token changes nothing", () => {
  const told = [];
  onAccess((change) => told.push(change));
  deny("needed", "a token is needed", "");
  useToken("new");
  deny("needed", "a token is needed", "");
  deny("refused", "not valid", "Bearer old");
  assert.deepEqual([authorization(), denied()], ["Bearer new", null]);
  deny("refused", "not valid", "Bearer new");
  deny("needed", "a token is needed", "");
  assert.deepEqual([authorization(), denied().kind], ["", "refused"]);
  allow("Bearer new");
  assert.equal(denied().kind, "refused");
  allow("");
  forgetToken();
  assert.deepEqual(told, ["denied", "granted", "denied", "granted", "forgotten"]);
});
