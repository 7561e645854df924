/** From the keyboard to actions. Fields and dialogs keep their keys, sliders their arrows; focused buttons, links and summaries Enter and Space. */

import { actions } from "./actions.js";
import { digitsOf, keysOf } from "./keymap.js";
import { view } from "./view.js";

/** @typedef {import("./keymap.js").Action} Action */

const STEP_PX = 60;
const NUDGE_PX = 12;
/** A key that is held longer than this hides only while it is down. */
const HOLD_MS = 350;
const ARROWS = /** @type {Record<string, [number, number]>} */ ({
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
});
/** What a held key repeats. */
const REPEATING = new Set(["smaller", "larger", "nearer", "farther", "undo", "redo"]);

/** Signs that a Latin keyboard has where others have letters. */
const SIGNS = /** @type {Record<string, string>} */ ({ BracketLeft: "[", BracketRight: "]", Comma: ",", Period: "." });

/** @param {KeyboardEvent} event @returns {string} The key as a Latin keyboard has it, where this one is of another script. */
function latin({ key, code }) {
  if (!/^\p{L}$/u.test(key) || /\p{Script=Latin}/u.test(key)) return key;
  return /^Key([A-Z])$/.exec(code)?.[1] ?? SIGNS[code] ?? key;
}

/** @param {KeyboardEvent} event @returns {string} For instance "Ctrl+Shift+Z"; a sign stands for itself, however it is typed. */
function chord(event) {
  const { ctrlKey, metaKey, altKey, shiftKey } = event;
  const key = latin(event);
  const name = key === " " ? "Space" : key.length === 1 ? key.toUpperCase() : key;
  const isLetter = /^[A-Z]$/.test(name) || name.length > 1;
  return `${ctrlKey || metaKey ? "Ctrl+" : ""}${altKey ? "Alt+" : ""}${shiftKey && isLetter ? "Shift+" : ""}${name}`;
}

/** @param {EventTarget | null} target */
const isTyping = (target) => target instanceof Element && target.closest("dialog[open], :is(input:not([type=range]), textarea, select):not(dialog *)") !== null;

/** @param {() => boolean} isActive Whether there is an image to work on. */
export function installKeys(isActive) {
  let hiddenAt = 0;
  addEventListener("keydown", (event) => {
    if (!isActive() || isTyping(event.target)) return;
    const action = meaning(event);
    if (!action) return;
    event.preventDefault();
    action();
    if (!event.repeat && named(event) === "hide") hiddenAt = performance.now();
  });
  addEventListener("keyup", (event) => {
    if (event.key === " ") view.hold(false);
    if (hiddenAt && latin(event).toUpperCase() === "H") {
      if (performance.now() - hiddenAt > HOLD_MS) actions.hide();
      hiddenAt = 0;
    }
  });
  addEventListener("blur", () => view.hold(false));
}

/** @param {KeyboardEvent} event @returns {Action | undefined} */
function named(event) {
  const [typed, keys] = [chord(event), Object.entries(keysOf())];
  const meant = [typed, typed.replace(/^Shift\+(?=..)/, "")];  // Shift is held for a box while Esc is pressed, too
  return /** @type {Action | undefined} */ (meant.map((one) => keys.find(([, own]) => own.includes(one))?.[0]).find(Boolean));
}

/** @param {KeyboardEvent} event @returns {(() => void) | undefined} */
function meaning(event) {
  const typed = chord(event);
  const onControl = event.target instanceof Element && event.target.closest("a, button, summary") !== null;
  if (onControl && (typed === "Enter" || typed === "Space")) return undefined;
  if (event.key in ARROWS && event.target instanceof Element && event.target.matches("[type=range]")) return undefined;
  const digit = /^(Ctrl\+)?([1-9])$/.exec(typed);
  if (digit && (digit[1] ?? "") === digitsOf()) return () => actions.category(Number(digit[2]) - 1);
  if (typed === "Tab" || typed === "Shift+Tab") return event.target === view.canvas ? nextCandidate(event) : undefined;
  if (event.key in ARROWS) return () => arrow(event);
  if (typed === "Space") return () => view.hold(true);
  const name = named(event);
  if (!name) return undefined;
  return event.repeat && !REPEATING.has(name) ? () => {} : () => actions[name](0);
}

/**
 * Arrows move the crosshair (Shift: one pixel of the screen), with Ctrl the image.
 * @param {KeyboardEvent} event
 */
function arrow(event) {
  const [dx, dy] = ARROWS[event.key];
  if (event.ctrlKey || event.metaKey) view.pan(-dx * STEP_PX, -dy * STEP_PX);
  else view.nudge(dx * (event.shiftKey ? 1 : NUDGE_PX), dy * (event.shiftKey ? 1 : NUDGE_PX));
}

/**
 * Tab goes through the candidates where there are several, and to the next control where there are not.
 * @param {KeyboardEvent} event
 */
function nextCandidate(event) {
  return actions.candidate(event.shiftKey ? -1 : 1) ? () => {} : undefined;
}
