/** Elements, and how figures are written. Text is only ever set as text, so that no name is taken for markup. */

import { make } from "../dom.js";

/** @param {string} href @param {string} text @param {Record<string, any>} [properties] */
export const link = (href, text, properties = {}) => make("a", { href, textContent: text, ...properties });

/** @param {string} text @param {() => void} onclick @param {Record<string, any>} [properties] */
export const button = (text, onclick, properties = {}) => make("button", { type: "button", textContent: text, onclick, ...properties });

/** @param {string} state @returns {HTMLElement} A word that says how something stands. */
export const badge = (state) => make("span", { className: "state", textContent: state, "data-state": state });

/**
 * @param {string} caption Said, not shown.
 * @param {string[]} heads
 * @param {(Node | string | null)[][]} rows
 * @returns {HTMLElement} A table that scrolls by itself where it is too wide.
 */
export function table(caption, heads, rows) {
  const cells = (/** @type {(Node | string | null)[]} */ row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell ?? "–")));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    make("table", {},
      make("caption", { className: "unseen", textContent: caption }),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", textContent: head })))),
      make("tbody", {}, ...rows.map(cells))));
}

/** @param {number | null | undefined} value @param {number} [digits] After the point. */
export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** @param {number} count @param {string} one @param {string} [more] */
export const counted = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${number(seconds / 60)} min`;
  return seconds < 172_800 ? `${number(seconds / 3600, 1)} h` : `${number(seconds / 86_400, 1)} days`;
}

/** @param {number | null} bytes */
export function size(bytes) {
  if (bytes === null) return "";
  const step = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), 4);
  return `${number(bytes / 1000 ** step, step > 0 && bytes / 1000 ** step < 10 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
}

/** @param {string} iso @returns {HTMLElement} When, in the reader's zone. */
export function when(iso) {
  const date = new Date(iso);
  const text = date.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  return make("time", { dateTime: iso, title: date.toLocaleString("en-GB"), textContent: text });
}
