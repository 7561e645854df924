/** Draws the desk as it stands: layers on the canvas, lists and buttons beside it. */

import { choose, chooseCandidate, chooseCategory, remove } from "./actions.js";
import { candidates, chosen, chosenEarlier, colourIndex, desk, isLive, isWaiting, placeOf, placeOfInstance, stepping } from "./desk.js";
import { colourOf, tint } from "./overlay.js";
import { $ } from "./dom.js";
import { showBadge, showCandidates, showCategories, showObjects, showOutline } from "./panel.js";
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

/** In milliseconds: while somebody zooms, masks are not tinted anew. */
const STILL_MS = 150;
/** Thickness of the outlines that are drawn. */
let outlined = 0;
let stillTimer = 0;

/** @returns {number} Pixels of the image that one of the screen shows, to the nearest power of two: close up, the edge is seen. */
function thickness() {
  const { width, height } = desk.session?.record.image ?? { width: 0, height: 0 };
  // In a strip an outline as thick as its length asks for would fill the masks.
  return Math.max(1, Math.round(Math.min(2 ** Math.round(-Math.log2(view.scale)), Math.min(width, height) / 50)));
}

/** The image is shown larger or smaller than before. */
export function zoomed() {
  clearTimeout(stillTimer);
  if (thickness() !== outlined) stillTimer = setTimeout(render, STILL_MS);
}

/**
 * @param {string} id Of an object or of an earlier mask.
 * @param {{sha: string, mask: import("./bytes.js").Mask} | undefined} shown
 * @param {number | null} index Of its colour.
 * @returns {Layer | null}
 */
function layerOf(id, shown, index) {
  if (!shown) return null;
  const alpha = Math.min(settings.opacity + (id === desk.current ? AFTER_CHOICE : 0), 1);
  const key = [shown.sha, index, alpha, outlined].join();
  const known = tinted.get(id);
  if (known?.key === key) return known.layer;
  const canvas = tint(shown.mask, colourOf(index), alpha, outlined);
  const layer = canvas && { canvas, x: shown.mask.x, y: shown.mask.y, width: canvas.width, height: canvas.height };
  tinted.set(id, { key, layer });
  return layer;
}

/** @typedef {{id: string, shown: {sha: string, mask: import("./bytes.js").Mask} | undefined, colour: number | null, place: number | null, state: string}} Item */

/**
 * Everything that the image has: this session's objects, then what stands from before.
 * @returns {Item[]}
 */
function items() {
  const { session } = desk;
  if (!session) return [];
  const own = session.fold.shown.map((instance) => ({
    id: instance.id, shown: session.masks.get(instance.id), colour: colourIndex(instance), place: placeOfInstance(instance),
    state: stateOf(instance),
  }));
  const before = session.standing.map((mask, index) => {
    const place = placeOf(mask.category);
    const colour = settings.colourBy === "object" ? session.fold.instances.size + index : place;
    return { id: mask.id, shown: mask, colour, place, state: mask.isProposal ? "proposal" : "from before" };
  });
  return [...own, ...before];
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
  if (item.untouched) return desk.session?.earlier.get(item.from ?? "")?.isProposal ? "proposal" : "from before";
  const state = item.accepted ? (item.dirty ? "changed" : "accepted") : made.filter(Boolean).join(", ");
  return item.unsure ? `${state} · unsure` : state;
}

/** Draw everything as it stands. */
export function render() {
  const { session } = desk;
  if (!session) return;
  const { record, pending } = session;
  outlined = thickness();
  const seen = items();
  const instance = chosen();
  const layers = new Map(desk.isHidden ? [] : seen.map(({ id, shown, colour }) => [id, layerOf(id, shown, colour)]));
  view.active = layers.get(desk.current ?? "") ?? null;
  view.layers = [...layers.values()].flatMap((layer) => (layer === null || layer === view.active ? [] : [layer]));
  view.clicks = /** @type {any} */ (desk.isHidden ? [] : instance?.clicks ?? []);
  view.boxes = /** @type {any} */ (desk.isHidden ? [] : instance?.boxes ?? []);
  view.crosshair = settings.crosshair;
  view.draw();
  if (!isWaiting()) showCandidates(candidates(), instance?.candidate ?? 0, chooseCandidate);
  showCategories(record.categories, instance?.category ?? chosenEarlier()?.category ?? desk.category, chooseCategory);
  showObjects(seen.map(({ id, place, colour, state }, index) => {
    const name = place === null ? "object" : record.categories[place].name;
    return { id, label: `${index + 1} ${name}`, state, colour, chosen: id === desk.current };
  }), choose, remove);
  const isOver = session.mode !== "live" && session.mode !== "loading";  // the gate says why
  const connected = pending.length > 0 ? "saving" : "saved";
  showBadge(isOver ? "idle" : session.online ? connected : "offline", session.unkept ? 0 : pending.length);
  showOutline(view.polygon?.size ?? null, desk.tolerance);
  buttons();
}

function buttons() {
  const instance = chosen();
  const live = isLive();
  $("undo").disabled = !live || !(stepping("undo") ?? view.polygon);
  $("redo").disabled = !live || !stepping("redo");
  $("accept").disabled = !live || !(chosenEarlier() ?? (instance && !instance.empty));
  for (const id of ["fill", "largest", "unsure"]) $(id).disabled = !live || !(chosenEarlier() ?? (instance && !instance.empty));
  if (view.polygon) $("accept").disabled = !live;
  for (const id of ["submit", "skip", "release"]) $(id).disabled = !live;
  const proposals = desk.session?.proposals.length ?? 0;
  $("all").hidden = proposals === 0;
  $("all").disabled = !live;
  $("all").textContent = `Accept ${proposals} ${proposals === 1 ? "proposal" : "proposals"}`;
  for (const button of $("draft").querySelectorAll("button")) button.disabled = !live;
  $("hide").ariaPressed = String(desk.isHidden);
  $("sign").ariaPressed = String(desk.isNegative);
  $("unsure").ariaPressed = String(instance?.unsure ?? false);
  for (const tool of ["box", "brush", "eraser", "polygon"]) $(tool).ariaPressed = String(view.tool === tool);
}
