/** Which keys mean what, as Clickloop has it or as other tools do. */

import { settings } from "./settings.js";

/** @typedef {keyof typeof import("./actions.js").actions} Action */
/** @typedef {typeof settings.keys} Preset */

/** What each action is called in the list of keys, in its order. */
export const LABELS = /** @type {Partial<Record<Action, string>>} */ ({
  accept: "accept the object, begin the next one", all: "accept all proposals", submit: "submit the image", skip: "skip the image, with a reason",
  undo: "undo", redo: "redo", remove: "delete the object", cancel: "drop what is being drawn, the tool, the object",
  box: "drag boxes", brush: "brush", eraser: "eraser", smaller: "smaller brush", larger: "larger brush",
  polygon: "outline with corners", fill: "fill holes", largest: "keep the largest part", sign: "left button says no, or yes again",
  unsure: "mark as unsure", find: "find a category", hide: "hide masks (held: while it is down)",
  inside: "this belongs to it, at the crosshair", outside: "this does not, at the crosshair",
  fit: "fit the image", nearer: "zoom in", farther: "zoom out", help: "this list",
});

/** @type {Partial<Record<Action, string[]>>} */
const OURS = {
  accept: ["Enter", "N"], all: ["Shift+A"], submit: ["Ctrl+Enter"], skip: ["Ctrl+Space"], undo: ["Ctrl+Z"], redo: ["Ctrl+Shift+Z", "Ctrl+Y"],
  remove: ["Delete", "Backspace"], cancel: ["Escape"], box: ["R"], brush: ["B"], eraser: ["E"], smaller: ["["], larger: ["]"],
  polygon: ["P"], fill: ["F"], largest: ["L"], sign: ["X"], unsure: ["U"], find: ["/"], hide: ["H"], inside: ["."], outside: [","],
  fit: ["0"], nearer: ["+", "="], farther: ["-"], help: ["?", "F1"],
};

/** Per preset what differs, and how the digits are held to choose a category. */
const PRESETS = /** @type {Record<Preset, {name: string, digits: string, keys: Partial<Record<Action, string[]>>}>} */ ({
  clickloop: { name: "Clickloop", digits: "", keys: {} },
  cvat: {
    name: "CVAT", digits: "Ctrl+",
    keys: { accept: ["N", "Shift+N", "Enter"], submit: ["F", "Ctrl+Enter"], skip: ["V", "Ctrl+Space"], fill: ["Shift+F"] },
  },
  "label-studio": { name: "Label Studio", digits: "", keys: { submit: ["Ctrl+Enter", "Alt+Enter"], hide: ["Alt+H", "H"] } },
  labelme: { name: "labelme", digits: "", keys: { submit: ["D", "Ctrl+S", "Ctrl+Enter"], polygon: ["Ctrl+N", "P"] } },
});
/** Names of the presets, by id. */
export const PRESET_NAMES = Object.entries(PRESETS).map(([id, { name }]) => ({ id: /** @type {Preset} */ (id), name }));

/** @returns {Partial<Record<Action, string[]>>} The keys of every action, as chosen. */
export const keysOf = () => ({ ...OURS, ...PRESETS[settings.keys].keys });

/** @returns {string} What is held while a digit chooses a category. */
export const digitsOf = () => PRESETS[settings.keys].digits;
