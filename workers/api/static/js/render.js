/** Draws the desk as it stands: layers on the canvas, lists and buttons beside it. */

import { choose, chooseCandidate, chooseCategory, remove } from "./actions.js";
import { candidates, chosen, colourIndex, desk, isLive, isWaiting, placeOfInstance } from "./desk.js";
import { colourOf, tint } from "./overlay.js";
import { $, showBadge, showCandidates, showCategories, showObjects, showOutline } from "./panel.js";
import { settings } from "./settings.js";
import { difference } from "./tools.js";
import { view } from "./view.js";

/** @typedef {import("./fold.js").Instance} Instance */
/** @typedef {import("./view.js").Layer} Layer */

/** @type {Map<string, {key: string, layer: Layer | null}>} */
const tinted = new Map();
const AFTER_CHOICE = 0.2;

/** Forget what was drawn for another image. */
export const forget = () => tinted.clear();

function thickness() {
  const { width, height } = desk.session?.record.image ?? { width: 0, height: 0 };
  return Math.max(1, Math.round(Math.max(width, height) / 800));
}

/** @param {Instance} instance @returns {Layer | null} */
function layerOf(instance) {
  const shown = desk.session?.masks.get(instance.id);
  if (!shown) return null;
  const index = colourIndex(instance);
  const alpha = Math.min(settings.opacity + (instance.id === desk.current ? AFTER_CHOICE : 0), 1);
  const key = [shown.sha, index, alpha].join();
  const known = tinted.get(instance.id);
  if (known?.key === key) return known.layer;
  const canvas = tint(shown.mask, colourOf(index), alpha, thickness());
  const layer = canvas && { canvas, x: shown.mask.x, y: shown.mask.y, width: canvas.width, height: canvas.height };
  tinted.set(instance.id, { key, layer });
  return layer;
}

/**
 * Light up for a moment what an edit has changed.
 * @param {import("./session.js").Shown | undefined} before @param {import("./session.js").Shown} after
 */
export function flash(before, after) {
  if (!before || desk.isHidden || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const changed = difference(before.mask, after.mask);
  const canvas = tint(changed, [255, 255, 255], 0.7, 1);
  if (canvas) view.flash({ canvas, x: changed.x, y: changed.y, width: canvas.width, height: canvas.height });
}

/** @param {number} count @param {string} one @param {string} more @returns {string} Empty for none. */
const counted = (count, one, more) => (count > 0 ? `${count} ${count === 1 ? one : more}` : "");

/** @param {Instance} item */
function stateOf(item) {
  const made = [
    counted(item.boxes.length, "box", "boxes"), counted(item.clicks.length, "click", "clicks"),
    counted(item.strokes.length, "stroke", "strokes"), counted(item.outlines.length, "outline", "outlines"),
  ];
  const state = item.accepted ? (item.dirty ? "changed" : "accepted") : made.filter(Boolean).join(", ");
  return item.unsure ? `${state} · unsure` : state;
}

/** Draw everything as it stands. */
export function render() {
  const { session } = desk;
  if (!session) return;
  const { fold, record, pending } = session;
  const seen = fold.shown;
  const instance = chosen();
  const layers = desk.isHidden ? [] : seen.filter((item) => item.id !== desk.current).flatMap((item) => layerOf(item) ?? []);
  view.layers = layers;
  view.active = desk.isHidden || !instance || instance.deleted || instance.empty ? null : layerOf(instance);
  view.clicks = /** @type {any} */ (desk.isHidden ? [] : instance?.clicks ?? []);
  view.boxes = /** @type {any} */ (desk.isHidden ? [] : instance?.boxes ?? []);
  view.crosshair = settings.crosshair;
  view.draw();
  if (!isWaiting()) showCandidates(candidates(), instance?.candidate ?? 0, chooseCandidate);
  showCategories(record.categories, instance?.category ?? desk.category, chooseCategory);
  showObjects(seen.map((item, index) => {
    const place = placeOfInstance(item);
    const name = place === null ? "object" : record.categories[place].name;
    return {
      id: item.id, label: `${index + 1} ${name}`, state: stateOf(item), colour: colourIndex(item), chosen: item.id === desk.current,
    };
  }), choose, remove);
  showBadge(session.online ? (pending.length > 0 ? "saving" : "saved") : "offline", pending.length);
  showOutline(view.polygon?.size ?? null, desk.tolerance);
  buttons();
}

function buttons() {
  const instance = chosen();
  const live = isLive();
  const recent = desk.session?.fold.instances.get(desk.session.fold.recent ?? "");
  $("undo").disabled = !live || !(instance?.top ?? recent?.top ?? view.polygon);
  $("redo").disabled = !live || !(instance?.redoTop ?? recent?.redoTop);
  for (const id of ["accept", "fill", "largest", "unsure"]) $(id).disabled = !live || !instance || instance.empty;
  if (view.polygon) $("accept").disabled = !live;
  for (const id of ["submit", "skip", "release"]) $(id).disabled = !live;
  $("hide").ariaPressed = String(desk.isHidden);
  $("sign").ariaPressed = String(desk.isNegative);
  $("unsure").ariaPressed = String(instance?.unsure ?? false);
  for (const tool of ["box", "brush", "eraser", "polygon"]) $(tool).ariaPressed = String(view.tool === tool);
}
