/** Shows numbers, amounts and times to people. */

import { element, shown } from "./dom.js";

const LOCALE = "en-GB"; // The language of the page. Dates in another language would not fit its texts.

/**
 * Shows an amount as the producer sent it: the integer and the currency's code. Amounts have no unit, so nothing is divided.
 * The digits are not grouped, because many readers take "1,817" for less than two.
 */
export function money(amount, currency) {
  if (!Number.isSafeInteger(amount)) return shown(amount);
  return `${amount} ${currency ?? ""}`.trimEnd();
}

export function integer(value) {
  return Number.isFinite(value) ? new Intl.NumberFormat(LOCALE).format(value) : "–";
}

export function percent(ratio) {
  return new Intl.NumberFormat(LOCALE, { style: "percent", maximumFractionDigits: 1 }).format(ratio);
}

export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const step = Math.min(Math.floor(Math.log(Math.max(count, 1)) / Math.log(1000)), units.length - 1);
  const options = { style: "unit", unit: units[step], unitDisplay: "short", maximumFractionDigits: 1 };
  return new Intl.NumberFormat(LOCALE, options).format(count / 1000 ** step);
}

export function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "–";
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];

function relative(date) {
  const seconds = (date.getTime() - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return new Intl.RelativeTimeFormat(LOCALE, { numeric: "auto" }).format(Math.trunc(seconds / size), unit);
}

/** Shows a moment with its time zone and its age. With `compact` the age and the zone are left out. */
export function moment(text, { compact = false } = {}) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return shown(text);
  const absolute = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: compact ? "medium" : "long" }).format(date);
  const time = element("time", { dateTime: date.toISOString(), title: String(text) }, absolute);
  if (compact) return time;
  const age = element("span", { className: "muted age" }, relative(date));
  age.dataset.since = date.toISOString();
  return element("span", {}, time, " ", age);
}

/** Updates the ages that `moment` wrote, while the page stays open. */
export function refreshAges() {
  for (const age of document.querySelectorAll("[data-since]")) age.textContent = relative(new Date(age.dataset.since));
}
