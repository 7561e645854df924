/** Dialogs: why an image is skipped, keys and looks. Knows elements, not sessions. */

import { closed } from "./identity.js";
import { LABELS, PRESET_NAMES, digitsOf, keysOf } from "./keymap.js";
import { $, make } from "./dom.js";
import { change, settings } from "./settings.js";

/**
 * Ask why an image is skipped.
 * @param {number} objects That are lost with it.
 * @returns {Promise<string | null>} The reason; null: it is not skipped.
 */
export async function askSkip(objects) {
  const dialog = $("skipping");
  if (dialog.open) return null;
  $("skip-note").textContent = objects > 0 ? `Its ${objects === 1 ? "object" : `${objects} objects`} will not count.` : "";
  $("skip-words").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  dialog.querySelector("input").focus();
  await closed(dialog);
  if (dialog.returnValue !== "skip") return null;
  const picked = dialog.querySelector("input[name=reason]:checked")?.value ?? "";
  return [picked, $("skip-words").value.trim()].filter(Boolean).join(": ");
}

const MOUSE = [
  ["Left click", "this belongs to the object; on a mask: choose it"],
  ["Right click, Alt+left", "this does not"],
  ["Ctrl+left", "begin an object on top of another"],
  ["Shift+drag", "box around the object"],
  ["Brush: right, Alt+left", "erase"],
  ["Outline: Alt+click", "take a corner out"],
  ["Wheel, two fingers", "zoom"],
  ["Middle or Space+drag", "move the image"],
  ["Arrows (Shift: fine)", "move the crosshair; with Ctrl the image"],
  ["Tab, Shift+Tab on the image", "other masks for these clicks"],
];

/** Show the keys as they are, and let another set be chosen. */
export function showKeys() {
  listKeys();
  if (!$("keys").open) $("keys").showModal();
}

function listKeys() {
  const keys = keysOf();
  const named = Object.entries(LABELS).map(([action, label]) =>
    [(keys[/** @type {keyof typeof keys} */ (action)] ?? []).join(", "), label]);
  const digits = [`${digitsOf()}1 to ${digitsOf()}9`, "category"];
  const mouse = settings.keys === "labelme" ? [["Shift+click", "this does not belong to the object"], ...MOUSE] : MOUSE;
  const lines = [...mouse, digits, ...named];
  $("key-list").replaceChildren(...lines.flatMap(([typed, does]) => [make("dt", { textContent: typed }), make("dd", { textContent: does })]));
}

/** Name the chosen keys at the buttons that do the same: what fills holes in one set submits the image in another. */
function nameKeys() {
  const keys = keysOf();
  for (const action of /** @type {(keyof typeof keys)[]} */ (Object.keys(LABELS))) {
    const button = $(action);
    if (action !== "help" && button?.tagName === "BUTTON") button.title = button.title.replace(/^[^:;]*/, (keys[action] ?? []).join(" or "));
  }
}

/**
 * Fill the choices of keys and looks, and keep what is chosen.
 * @param {() => void} onChange Of the looks.
 */
export function wireSettings(onChange) {
  $("preset").replaceChildren(...PRESET_NAMES.map(({ id, name }) => make("option", { value: id, textContent: name })));
  $("preset").value = settings.keys;
  nameKeys();
  $("preset").onchange = () => {
    change({ keys: $("preset").value });
    listKeys();
    nameKeys();
  };
  $("looks").ontoggle = () => {
    if ($("looks").open) $("looks").scrollIntoView({ block: "nearest" });
  };
  $("opacity").value = String(settings.opacity);
  $("opacity").onchange = () => {
    change({ opacity: Number($("opacity").value) });
    onChange();
  };
  $("colour-by").value = settings.colourBy;
  $("colour-by").onchange = () => {
    change({ colourBy: $("colour-by").value });
    onChange();
  };
  $("crosshair").checked = settings.crosshair;
  $("crosshair").onchange = () => {
    change({ crosshair: $("crosshair").checked });
    onChange();
  };
}
