/** What a text in the search box may be. This module knows neither the page nor the service. */

const ORDER_UID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const TEXT_MAX = 256; // The longest text that an order can hold in any of these fields.
/** The signs of a phone number, as the service accepts them. */
const PHONE = /^[0-9 +()\-./x#]{5,32}$/;
const DIGITS_MIN = 5;
/** The service refuses shorter prefixes, because they match too much. */
const PREFIX_MIN = 3;

/** The kinds, in the order in which their results are shown: the name in the body of the search, the field in words, and how it is compared. */
const WORDS = {
  email: ["E-mail address", "is"],
  phone: ["Phone number", "is"],
  customer_id: ["Customer id", "is"],
  order_uid_prefix: ["Order id", "begins with"],
  track_number: ["Track number", "is"],
  track_number_prefix: ["Track number", "begins with"],
};

/** Cleans a pasted text: removes invisible characters, and quotes, commas and spaces around it. */
export function clean(text) {
  return text
    .replace(/[\u200b-\u200d\u2060\ufeff]/g, "")
    .replace(/\s+/g, " ")
    .replace(/^[\s,;:"'`´“”„‘’‚«»]+|[\s,;:"'`´“”„‘’‚«»]+$/g, "");
}

export function isPhone(text) {
  return PHONE.test(text) && text.replace(/\D/g, "").length >= DIGITS_MIN;
}

/** Returns the id of the order that the text may name, or null. A text that may be a phone number must not get into an address. */
export function uidOf(text) {
  const uid = text.replace(/ /g, ""); // A line break in the middle of a pasted id became a space.
  return ORDER_UID.test(uid) && !isPhone(text) ? uid : null;
}

/** Returns what a text may be: a list of `{ kind, value, field, relation }`. It is empty if no order can hold the text. */
export function kindsOf(text) {
  if (text === "" || text.length > TEXT_MAX) return [];
  const isPrefix = text.length >= PREFIX_MIN;
  const fits = {
    email: /^[^\s@]+@[^\s@]+$/.test(text),
    phone: isPhone(text),
    customer_id: true,
    order_uid_prefix: ORDER_UID.test(text) && isPrefix,
    track_number: !isPrefix,
    track_number_prefix: isPrefix,
  };
  return Object.entries(WORDS).filter(([kind]) => fits[kind]).map(([kind, [field, relation]]) => ({ kind, value: text, field, relation }));
}
