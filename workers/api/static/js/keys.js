/** From the keyboard to actions. Fields and dialogs keep their keys, focused buttons keep Enter and Space. */

/**
 * @typedef {object} Actions
 * @property {() => void} accept
 * @property {() => void} submit
 * @property {() => void} skip
 * @property {() => void} undo
 * @property {() => void} redo
 * @property {() => void} remove
 * @property {() => void} cancel
 * @property {() => void} brush Take or put down the brush.
 * @property {(factor: number) => void} resize The brush.
 * @property {() => void} fill Give the object what it encloses.
 * @property {() => void} largest Keep its largest part.
 * @property {() => void} hide
 * @property {(step: number) => boolean} candidate Show the next one (or, with -1, the one before). Whether there is one.
 * @property {() => void} help
 * @property {(index: number) => void} category By its place in the list, from 0.
 */

const STEP_PX = 60;
const ARROWS = /** @type {Record<string, [number, number]>} */ ({
  ArrowLeft: [STEP_PX, 0], ArrowRight: [-STEP_PX, 0], ArrowUp: [0, STEP_PX], ArrowDown: [0, -STEP_PX],
});

/**
 * @param {Actions} actions
 * @param {import("./view.js").View} view
 * @param {() => boolean} isActive Whether there is an image to work on.
 */
export function installKeys(actions, view, isActive) {
  addEventListener("keydown", (event) => {
    if (!isActive() || isTyping(event.target)) return;
    const action = event.ctrlKey || event.metaKey ? withControl(event, actions) : plain(event, actions, view);
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("keyup", (event) => {
    if (event.key === " ") view.hold(false);
  });
  addEventListener("blur", () => view.hold(false));
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  return target instanceof Element && target.closest("input, textarea, select, dialog") !== null;
}

/** @param {KeyboardEvent} event @param {Actions} actions @returns {(() => void) | undefined} */
function withControl(event, actions) {
  if (event.altKey) return undefined;
  switch (event.key.toLowerCase()) {
    case "z": return event.shiftKey ? actions.redo : actions.undo;
    case "y": return actions.redo;
    case "enter": return event.repeat ? () => {} : actions.submit;
    case " ": return event.repeat ? () => {} : actions.skip;
    default: return undefined;
  }
}

/**
 * @param {KeyboardEvent} event
 * @param {Actions} actions
 * @param {import("./view.js").View} view
 * @returns {(() => void) | undefined}
 */
function plain(event, actions, view) {
  const onButton = event.target instanceof HTMLButtonElement;
  if (event.altKey || (onButton && (event.key === "Enter" || event.key === " "))) return undefined;
  if (/^[1-9]$/.test(event.key)) return () => actions.category(Number(event.key) - 1);
  if (event.key === "Tab") return event.target === view.canvas ? nextCandidate(event, actions) : undefined;
  if (event.key in ARROWS) return () => view.pan(...ARROWS[event.key]);
  switch (event.key) {
    case "Enter": case "n": case "N": return event.repeat ? () => {} : actions.accept;
    case "Delete": case "Backspace": return event.repeat ? () => {} : actions.remove;
    case "Escape": return actions.cancel;
    case "b": case "B": return event.repeat ? () => {} : actions.brush;
    case "[": return () => actions.resize(0.8);
    case "]": return () => actions.resize(1.25);
    case "f": case "F": return event.repeat ? () => {} : actions.fill;
    case "l": case "L": return event.repeat ? () => {} : actions.largest;
    case "h": case "H": return actions.hide;
    case "?": case "F1": return actions.help;
    case "0": return () => view.fit();
    case "+": case "=": return () => view.zoom(1.25);
    case "-": return () => view.zoom(0.8);
    case " ": return () => view.hold(true);
    default: return undefined;
  }
}

/**
 * Tab goes through the candidates where there are several, and to the next control where there are not.
 * @param {KeyboardEvent} event @param {Actions} actions
 */
function nextCandidate(event, actions) {
  return actions.candidate(event.shiftKey ? -1 : 1) ? () => {} : undefined;
}
