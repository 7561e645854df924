/** What is being worked on, and questions about it. Knows no elements. */

import { settings } from "./settings.js";

/**
 * @typedef {object} Desk
 * @property {import("./session.js").Session | null} session
 * @property {string | null} current Id of the object, or of the earlier mask, that edits go to; null: the next edit begins one.
 * @property {number | null} category Number of the category for the next objects.
 * @property {number | null} replaced What `category` was before one was chosen for an object that had none: an undo brings it back.
 * @property {boolean} isHidden Whether masks are not drawn.
 * @property {boolean} isNegative Whether the left button says that something does not belong, as the right one does.
 * @property {number} radius Of the brush, in pixels of the image.
 * @property {number} tolerance Of an outline's corners, in pixels of the image.
 * @property {() => void} changed Draws what has changed.
 * @property {string} confirming What must be asked for twice in a row, and was asked for once.
 */

/** @type {Desk} */
export const desk = {
  session: null, current: null, category: null, replaced: null, isHidden: false, isNegative: false, radius: 8, tolerance: 1,
  confirming: "", changed: () => {},
};

/** The object that edits go to. */
export const chosen = () => (desk.current === null ? undefined : desk.session?.fold.instances.get(desk.current));

/**
 * The object that the next undo or redo changes: the chosen one where it has a step to take, else the one worked on last.
 * @param {"undo" | "redo"} kind
 */
export function stepping(kind) {
  const instance = chosen();
  if (kind === "redo") return instance?.redoTop ? instance : desk.session?.fold.redoable;
  return instance?.hasStep ? instance : desk.session?.fold.undoable;
}

/** The mask from before this session that is chosen: the next edit opens an object from it. */
export const chosenEarlier = () => (desk.current === null ? undefined : desk.session?.earlier.get(desk.current));

/** The chosen mask as it is shown. */
export const shownMask = () => (desk.session?.masks.get(desk.current ?? "") ?? chosenEarlier())?.mask;

/** Whether this page may write. */
export const isLive = () => desk.session?.isLive === true;

/** Whether the mask of the chosen object's last edit has yet to come. */
export function isWaiting() {
  const instance = chosen();
  return instance !== undefined && desk.session !== null && desk.session.isBehind(instance);
}

/** Scores of the chosen object's candidates, in their order; none while they may change. */
export function candidates() {
  return desk.current === null || isWaiting() ? [] : desk.session?.masks.get(desk.current)?.scores ?? [];
}

/**
 * @param {number | null} number Of a category.
 * @returns {number | null} Its place in the campaign's list.
 */
export function placeOf(number) {
  const index = desk.session?.record.categories.findIndex((/** @type {any} */ item) => item.number === number) ?? -1;
  return index < 0 ? null : index;
}

/**
 * @param {import("./fold.js").Instance} instance
 * @returns {number | null} Place of its category, or of the one that it will be accepted with.
 */
export const placeOfInstance = (instance) => placeOf(instance.category ?? (instance.accepted ? null : desk.category));

/**
 * @param {import("./fold.js").Instance} instance
 * @returns {number | null} Which colour it has.
 */
export function colourIndex(instance) {
  return settings.colourBy === "object" ? instance.order : placeOfInstance(instance);
}

/**
 * @param {number} x In pixels of the image. @param {number} y
 * @returns {string | null} Id of the object whose mask lies there, the smallest first.
 */
export function objectAt(x, y) {
  const { session } = desk;
  if (!session) return null;
  let [found, smallest] = [/** @type {string | null} */ (null), Infinity];
  const own = session.fold.shown.map(({ id }) => ({ id, mask: session.masks.get(id)?.mask }));
  for (const { id, mask } of [...own, ...session.standing]) {
    if (!mask) continue;
    const [column, row] = [Math.floor(x) - mask.x, Math.floor(y) - mask.y];
    if (column < 0 || row < 0 || column >= mask.width || row >= mask.height) continue;
    const size = mask.width * mask.height;
    if (mask.pixels[row * mask.width + column] && size < smallest) [found, smallest] = [id, size];
  }
  return found;
}
