/** The parts of the page beside the image: lists, badge, notes. Knows elements, not sessions. */

import { $, make } from "./dom.js";
import { colourOf } from "./overlay.js";

/** @param {number | null} index */
function swatch(index) {
  const element = make("span", { className: "swatch" });
  element.style.background = `rgb(${colourOf(index).join(" ")})`;
  return element;
}

/**
 * Replace a list's items, keeping the focus on the same place.
 * @param {HTMLElement} list
 * @param {Node[]} items
 */
function fill(list, items) {
  const focused = [...list.querySelectorAll("button")].findIndex((button) => button === document.activeElement);
  list.replaceChildren(...items);
  if (focused >= 0) list.querySelectorAll("button")[focused]?.focus();
}

/** @param {"start" | "desk"} name */
export function showScreen(name) {
  $("start").hidden = name !== "start";
  $("desk").hidden = name !== "desk";
}

/** @param {any[]} campaigns @param {(campaign: any) => void} onChoose */
export function showCampaigns(campaigns, onChoose) {
  fill($("campaigns"), campaigns.map((campaign) => {
    const button = make("button", { type: "button" },
      make("span", { className: "name", textContent: campaign.name }),
      make("span", { className: "quiet", textContent: campaign.state === "active" ? campaign.model_id : campaign.state }));
    button.onclick = () => onChoose(campaign);
    return make("li", {}, button);
  }));
}

/** @param {any[]} sessions As GET /api/sessions lists them. @param {(id: string) => void} onChoose */
export function showUnfinished(sessions, onChoose) {
  fill($("unfinished"), sessions.map(({ id, campaign, image_number, file_name }) => {
    const button = make("button", { type: "button" },
      make("span", { className: "name", textContent: `Go on with image ${image_number} · ${file_name}` }),
      make("span", { className: "quiet", textContent: campaign }));
    button.onclick = () => onChoose(id);
    return make("li", {}, button);
  }));
}

/** From so many categories on there is a field to find one. */
const MANY = 10;

/**
 * @param {{number: number, name: string}[]} categories
 * @param {number | null} chosen
 * @param {(n: number) => void} onChoose
 */
export function showCategories(categories, chosen, onChoose) {
  const wanted = $("find").value.trim().toLowerCase();
  $("categories-title").hidden = categories.length === 0;
  $("find").hidden = categories.length < MANY && document.activeElement !== $("find");
  const items = categories.map((category, index) => ({ category, index }));
  const found = items.filter(({ category }) => category.name.toLowerCase().includes(wanted));
  const key = JSON.stringify([found.map(({ index }) => index), chosen, categories]);
  if ($("categories").dataset.key === key) return;
  $("categories").dataset.key = key;
  fill($("categories"), found.map(({ category, index }) => {
    const digit = index < 9 ? [make("kbd", { textContent: String(index + 1) })] : [];
    const button = make("button", { type: "button", ariaPressed: String(category.number === chosen) },
      swatch(index), make("span", { className: "name", textContent: category.name, title: category.name }), ...digit);
    button.onclick = () => onChoose(category.number);
    return make("li", {}, button);
  }));
  $("categories").querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

/**
 * @param {number[]} scores In [0, 1].
 * @param {number} chosen Its index.
 * @param {(index: number) => void} onChoose
 */
export function showCandidates(scores, chosen, onChoose) {
  $("candidates-title").hidden = scores.length < 2;
  fill($("candidates"), scores.length < 2 ? [] : scores.map((score, index) => {
    const button = make("button", {
      type: "button", textContent: `${index + 1} · ${Math.round(100 * score)} %`, ariaPressed: String(index === chosen),
    });
    button.onclick = () => onChoose(index);
    return make("li", {}, button);
  }));
}

/** @typedef {{id: string, label: string, state: string, colour: number | null, chosen: boolean}} ObjectLine */

/** @type {Map<string, {key: string, item: HTMLElement}>} Lines that are shown: those of a thousand objects are not made anew. */
const lines = new Map();

/**
 * @param {ObjectLine[]} objects
 * @param {(id: string) => void} onChoose
 * @param {(id: string) => void} onDelete
 */
export function showObjects(objects, onChoose, onDelete) {
  $("no-objects").hidden = objects.length > 0;
  $("objects-title").textContent = objects.length > 1 ? `Objects (${objects.length})` : "Objects";
  const ids = new Set(objects.map(({ id }) => id));
  for (const [id, { item }] of lines) {
    if (ids.has(id)) continue;
    const isFocused = item.contains(document.activeElement);
    const next = /** @type {HTMLElement | null} */ (item.nextElementSibling ?? item.previousElementSibling);
    item.remove();
    lines.delete(id);
    if (isFocused) next?.querySelector("button")?.focus();
  }
  for (const [index, object] of objects.entries()) {
    const item = line(object, onChoose, onDelete);
    const there = $("objects").children[index];
    if (there !== item) $("objects").insertBefore(item, there ?? null);
    if (object.chosen) item.scrollIntoView({ block: "nearest" });
  }
}

/**
 * @param {ObjectLine} object
 * @param {(id: string) => void} onChoose
 * @param {(id: string) => void} onDelete
 * @returns {HTMLElement}
 */
function line(object, onChoose, onDelete) {
  const known = lines.get(object.id);
  const key = JSON.stringify(object);
  if (known?.key === key) return known.item;
  const pick = make("button", { type: "button", className: "pick", ariaPressed: String(object.chosen) },
    swatch(object.colour), make("span", { className: "name", textContent: object.label }),
    make("small", { textContent: object.state }));
  pick.onclick = () => onChoose(object.id);
  const remove = make("button", { type: "button", textContent: "×", ariaLabel: `Delete ${object.label}` });
  remove.onclick = () => onDelete(object.id);
  const item = known?.item ?? make("li");
  const focused = [...item.children].indexOf(document.activeElement);
  item.replaceChildren(pick, remove);
  if (focused >= 0) item.children[focused].focus();
  lines.set(object.id, { key, item });
  return item;
}

/**
 * @param {number | null} corners Of the outline that is being drawn; null: none is.
 * @param {number} tolerance
 */
export function showOutline(corners, tolerance) {
  $("outline").hidden = corners === null;
  $("simplify").value = String(tolerance);
  $("corners").textContent = corners === null ? "" : `${corners} ${corners === 1 ? "corner" : "corners"}`;
}

/**
 * Offer what was done on this image before.
 * @param {number} count Of its objects.
 * @param {() => void} onPutBack
 * @param {() => void} onDrop
 */
export function showDraft(count, onPutBack, onDrop) {
  $("draft").hidden = count === 0;
  const [text, putBack, drop] = $("draft").children;
  text.textContent = `You worked on this image before and did not submit it: ${count} ${count === 1 ? "object is" : "objects are"} kept.`;
  putBack.onclick = () => {
    $("draft").hidden = true;
    onPutBack();
  };
  drop.onclick = () => {
    $("draft").hidden = true;
    onDrop();
  };
}

/**
 * @param {"idle" | "saved" | "saving" | "offline"} state
 * @param {number} waiting Events not acknowledged; 0 while a reload would lose one.
 */
export function showBadge(state, waiting) {
  const words = { idle: "", saved: "Saved", saving: "Saving…", offline: "Offline" };
  $("badge").dataset.state = state;
  const text = state === "offline" && waiting > 0 ? `Offline, ${waiting} waiting` : words[state];
  if ($("badge").textContent !== text) $("badge").textContent = text;
}

let noteTimer = 0;

/**
 * @param {"info" | "error"} level
 * @param {string} text Empty: take the note away.
 */
export function showNote(level, text) {
  clearTimeout(noteTimer);
  $("note").dataset.level = level;
  if ($("note").textContent !== text) $("note").textContent = text;
  if (text) noteTimer = setTimeout(() => showNote("info", ""), level === "error" ? 12_000 : 5_000);
}

/**
 * Cover the image with a message and one way on.
 * @param {string} text @param {string} label Of the way; empty: none.
 * @param {() => void} action
 */
export function showGate(text, label, action) {
  const [message, button] = $("gate").children;
  message.textContent = text;
  button.textContent = label;
  button.hidden = !label;
  button.onclick = action;
  $("gate").hidden = false;
  if (label) button.focus();
}

/** Take the cover away. */
export function hideGate() {
  $("gate").hidden = true;
}

/** @param {import("./session.js").Latency | null} latency Null: nothing was measured yet. */
export function showLatency(latency) {
  if (!latency) {
    $("latency").textContent = "";
    return;
  }
  const { server = 0, model = 0, ...others } = latency.stages;
  const known = model + Object.values(others).reduce((sum, ms) => sum + ms, 0);
  const parts = { model, queue: Math.max(server - known, 0), network: Math.max(latency.total - Math.max(server, known), 0) };
  const words = Object.entries(parts).map(([name, ms]) => `${name} ${Math.round(ms)}`);
  $("latency").replaceChildren(`${Math.round(latency.total)} ms`, make("small", { textContent: ` ${words.join(" · ")}` }));
}
