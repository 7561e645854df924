/** The parts of the page beside the image: lists, badge, notes, dialogs. Knows elements, not sessions. */

import { identity } from "./api.js";
import { colourOf } from "./overlay.js";

/** @param {string} id @returns {any} The element with this id. */
export const $ = (id) => document.getElementById(id);

/** @param {string} tag @param {Record<string, any>} [properties] @param {(Node | string)[]} children @returns {any} */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** @param {number | null} index */
function swatch(index) {
  const element = make("span", { className: "swatch" });
  element.style.background = `rgb(${colourOf(index).join(" ")})`;
  return element;
}

/** Replace a list's items, keeping the focus on the same place. @param {HTMLElement} list @param {Node[]} items */
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
    const button = make("button", { type: "button", disabled: campaign.state !== "active" },
      make("span", { className: "name", textContent: campaign.name }),
      make("span", { className: "quiet", textContent: campaign.state === "active" ? campaign.model_id : campaign.state }));
    button.onclick = () => onChoose(campaign);
    return make("li", {}, button);
  }));
}

/** @param {{number: number, name: string}[]} categories @param {number | null} chosen @param {(n: number) => void} onChoose */
export function showCategories(categories, chosen, onChoose) {
  $("categories-title").hidden = categories.length === 0;
  fill($("categories"), categories.map((category, index) => {
    const key = index < 9 ? [make("kbd", { textContent: String(index + 1) })] : [];
    const button = make("button", { type: "button", ariaPressed: String(category.number === chosen) },
      swatch(index), make("span", { className: "name", textContent: category.name }), ...key);
    button.onclick = () => onChoose(category.number);
    return make("li", {}, button);
  }));
}

/** @param {number[]} scores In [0, 1]. @param {number} chosen Its index. @param {(index: number) => void} onChoose */
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

/**
 * @param {{id: string, label: string, state: string, colour: number | null, chosen: boolean}[]} objects
 * @param {(id: string) => void} onChoose
 * @param {(id: string) => void} onDelete
 */
export function showObjects(objects, onChoose, onDelete) {
  $("no-objects").hidden = objects.length > 0;
  fill($("objects"), objects.map((object) => {
    const pick = make("button", { type: "button", className: "pick", ariaPressed: String(object.chosen) },
      swatch(object.colour), make("span", { className: "name", textContent: object.label }),
      make("small", { textContent: object.state }));
    pick.onclick = () => onChoose(object.id);
    const remove = make("button", { type: "button", textContent: "×", ariaLabel: `Delete ${object.label}` });
    remove.onclick = () => onDelete(object.id);
    return make("li", {}, pick, remove);
  }));
}

/** @param {"idle" | "saved" | "saving" | "offline"} state @param {number} waiting Events not acknowledged. */
export function showBadge(state, waiting) {
  const words = { idle: "", saved: "Saved", saving: "Saving…", offline: "Offline" };
  $("badge").dataset.state = state;
  const text = state === "offline" && waiting > 0 ? `Offline, ${waiting} waiting` : words[state];
  if ($("badge").textContent !== text) $("badge").textContent = text;
}

let noteTimer = 0;

/** @param {"info" | "error"} level @param {string} text Empty: take the note away. */
export function showNote(level, text) {
  clearTimeout(noteTimer);
  $("note").dataset.level = level;
  $("note").textContent = text;
  if (text) noteTimer = setTimeout(() => showNote("info", ""), level === "error" ? 12_000 : 5_000);
}

/** Cover the image with a message and one way on. @param {string} text @param {string} label @param {() => void} action */
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

/** @type {Promise<void> | null} */
let asking = null;

/** @param {string} why Shown above the fields. @returns {Promise<void>} When they are filled in. */
export function askIdentity(why) {
  asking ??= fillIdentity(why).finally(() => { asking = null; });
  return asking;
}

/** @param {string} why */
async function fillIdentity(why) {
  const dialog = $("identity");
  $("identity-note").textContent = why;
  $("name").value = identity.name || "local";
  $("token").value = identity.token;
  dialog.showModal();
  $("name").select();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  identity.set($("name").value || "local", $("token").value);
  showIdentity();
}

/** Say who works. */
export function showIdentity() {
  $("who").hidden = !identity.name;
  $("who").textContent = identity.name;
  $("who").setAttribute("aria-label", `Labeling as ${identity.name}. Change your name or token`);
}
