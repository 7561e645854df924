/** What people do with an image, whether by key, button or pointer: it becomes events of the session. */

import { uuid4 } from "./bytes.js";
import { candidates, chosen, chosenEarlier, desk, isLive, isWaiting, objectAt, shownMask, stepping } from "./desk.js";
import { askSkip, showKeys } from "./dialogs.js";
import { $ } from "./dom.js";
import { rememberDraft } from "./draft.js";
import { TOO_LARGE, isTooLarge } from "./limits.js";
import { showNote } from "./panel.js";
import { Polygon } from "./polygon.js";
import { settings } from "./settings.js";
import { fillHoles, keepLargest, paint, reshape } from "./tools.js";
import { view } from "./view.js";

const PAINTING = new Set(["brush", "eraser"]);
/** Of a brush's radius, in pixels of the image. */
const [SMALLEST_BRUSH, LARGEST_BRUSH] = [1, 500];
/** Of the same, in pixels of the screen, between which a brush can be seen and aimed with, and what it is where it could not. */
const [THIN_PX, WIDE_PX, HANDY_PX] = [2, 150, 12];
const NOT_HERE = "The mask of your last edit is not here yet.";

/**
 * Choose what edits go to. An outline in the making is of what was chosen before, and is dropped.
 * @param {string | null} id See `desk.current`.
 */
export function select(id) {
  if (view.polygon && id !== desk.current) view.take("click", desk.radius);
  desk.current = id;
}

/** Whether this page may write now; says so where it may only in a moment, or no more. */
function mayWrite() {
  if (desk.session?.obstacle) showNote("info", desk.session.obstacle);
  return isLive();
}

/**
 * A click on the image: one on a mask chooses its object where none is chosen; Ctrl begins a new one all the same.
 * @param {import("./view.js").Click} click @param {boolean} isNew
 */
export function click({ x, y, is_positive }, isNew) {
  const sign = desk.isNegative ? !is_positive : is_positive;
  const hit = desk.current === null && !isNew && !desk.isHidden ? objectAt(x, y) : null;
  if (hit) {
    select(hit);
    showNote("info", "This object is chosen: click to correct it. Esc leaves it as it is.");
    desk.changed();
  } else if (desk.current === null && !sign) {
    showNote("info", desk.isNegative ? "The left button now says what does not belong to an object (X, Negative): begin one with the right button."
      : "Begin an object with a left click on it.");
  } else prompt("click", { x, y, is_positive: sign });
}

/** @param {import("./view.js").Stroke} stroke */
export function stroke(stroke) {
  if (!desk.session || !mayWrite()) return;
  const payload = paint(stroke, desk.session.record.image.width, desk.session.record.image.height);
  if (desk.current === null && !stroke.is_positive) showNote("info", "Begin an object by painting with the left button.");
  else if (payload) prompt("brush", payload);
}

/**
 * Add to the chosen object, or begin one with it.
 * @param {string} kind @param {Record<string, any>} payload
 * @returns {boolean} Whether it was taken.
 */
export function prompt(kind, payload) {
  if (!desk.session || !mayWrite()) return false;
  if (isTooLarge(payload)) {
    showNote("error", TOO_LARGE);
    return false;
  }
  desk.confirming = "";
  showNote("info", "");
  const id = begin(desk.session, desk.current);
  if (desk.current === null) select(id);
  else desk.current = id;  // an earlier mask goes on as the object that was opened from it
  desk.session.add(kind, id, payload);
  return true;
}

/**
 * The object that an edit goes to: this one, one opened from this earlier mask, or a new one.
 * @param {import("./session.js").Session} session @param {string | null} from
 * @returns {string} Its id.
 */
function begin(session, from) {
  const earlier = session.earlier.get(from ?? "");
  if (from !== null && !earlier) return from;
  const id = uuid4();
  session.add("open", id, earlier ? { mask_id: earlier.id } : {});
  if (earlier && earlier.category !== null) session.add("category", id, { category: earlier.category });
  return id;
}

/** @param {number} index */
export function chooseCandidate(index) {
  if (index < candidates().length && index !== chosen()?.candidate && mayWrite()) desk.session?.add("candidate", desk.current, { index });
}

/** @param {number} number Of a category. */
export function chooseCategory(number) {
  const instance = chosen();
  const earlier = chosenEarlier();
  if (instance?.category === null) desk.replaced = desk.category;
  desk.category = number;
  if (earlier ? earlier.category !== number : instance && instance.category !== number) prompt("category", { category: number });
  desk.changed();
}

/** @param {string} id Of an object. */
export function remove(id) {
  if (!desk.session || !mayWrite()) return;
  desk.confirming = "";
  desk.session.add("delete", begin(desk.session, id));
  if (desk.current === id) select(null);
  desk.changed();
}

/** @param {string} id Of the object to choose, or to leave where it is chosen. */
export function choose(id) {
  select(id === desk.current ? null : id);
  desk.changed();
}

/**
 * Change the chosen object's mask without the model.
 * @param {string} tool
 * @param {(mask: import("./bytes.js").Mask) => import("./tools.js").Change | null} work
 * @param {string} nothing What to say when there is nothing to do.
 */
function edit(tool, work, nothing) {
  const shown = shownMask();
  if (!shown) return;
  if (isWaiting()) {
    showNote("info", `${NOT_HERE} Change it when you see it.`);
    return;
  }
  const changed = work(shown);
  if (changed) prompt("mask_edit", { tool, ...changed });
  else showNote("info", nothing);
}

/**
 * Ask twice for what cannot be undone.
 * @param {string} what @param {string} question
 * @returns {boolean} Whether to do it.
 */
function confirmed(what, question) {
  if (desk.confirming === what) return true;
  desk.confirming = what;
  showNote("info", question);
  return false;
}

/** @param {"undo" | "redo"} kind */
function step(kind) {
  if (view.polygon) {
    if (kind === "undo") view.polygon.back();
    desk.changed();
    return;
  }
  const { session } = desk;
  const target = stepping(kind);
  if (!session || !target || !mayWrite()) return;
  desk.confirming = "";
  const { category } = target;
  session.add(kind, target.id, { event_id: kind === "undo" ? target.top : target.redoTop });
  if (category === null) desk.category = target.category ?? desk.category;
  else if (target.category === null) desk.category = desk.replaced ?? desk.category;
  select(!target.deleted && target.dirty ? target.id : null);
  desk.changed();
}

/**
 * Take a tool, or put it down.
 * @param {"click" | "box" | "brush" | "eraser" | "polygon"} tool
 */
function take(tool) {
  if (tool === "polygon" && view.tool !== tool && isWaiting()) {
    showNote("info", `${NOT_HERE} Take its outline when you see it.`);
    return;
  }
  const onScreen = desk.radius * view.scale;  // as the last image or zoom had it
  if (PAINTING.has(tool) && (onScreen < THIN_PX || onScreen > WIDE_PX)) desk.radius = brush(HANDY_PX / view.scale);
  view.take(view.tool === tool ? "click" : tool, desk.radius);
  showNote("info", "");
  if (view.tool === "polygon") {
    const shown = shownMask();
    view.polygon = new Polygon(shown ?? null, desk.tolerance);
    showNote("info", shown ? "Drag the corners; Alt+click takes one out; Enter makes it the mask."
      : "Set corners with clicks; Enter or a click on the first one closes the outline.");
  }
  desk.changed();
}

/** Make the outline the chosen object's mask. */
export function applyPolygon() {
  const { session } = desk;
  const polygon = view.polygon;
  if (!session || !polygon || !mayWrite()) return;
  polygon.close();
  const { width, height } = session.record.image;
  const nothing = { x: 0, y: 0, width: 0, height: 0, pixels: new Uint8Array(0) };
  if (isWaiting()) {
    showNote("info", `${NOT_HERE} Apply the outline when you see it.`);
    return;
  }
  const payload = reshape(shownMask() ?? nothing, polygon.mask(width, height), polygon.rings);
  if (payload && !prompt("mask_edit", { tool: "polygon", ...payload })) return;
  view.take("click", desk.radius);
  desk.changed();
}

/** An outline that was closed by a click on its first corner: a new object is done with it. */
export function polygonClosed() {
  if (view.polygon?.isNew && desk.current === null) applyPolygon();
  else desk.changed();
}

/** What keys and buttons call, by the names of `keys.js`. */
export const actions = {
  accept() {
    if (view.polygon) {
      applyPolygon();
      return;
    }
    const instance = chosen();
    const { session } = desk;
    const earlier = chosenEarlier();
    if (!session || !mayWrite()) return;
    desk.confirming = "";
    if (earlier) {
      if (earlier.isProposal) acceptAsItIs(session, { id: earlier.id, mask: earlier });  // another one stands as it is
      select(null);
      desk.changed();
    }
    if (!instance || instance.empty) return;
    const shown = session.masks.get(instance.id);
    if (instance.node.kind === "accept") {  // nothing has changed since
      select(null);
      desk.changed();
    } else if (!shown || session.isBehind(instance)) {
      showNote("info", `${NOT_HERE} Accept it when you see it.`);
    } else if (shown.mask.pixels.length === 0) {
      showNote("info", "The mask is empty: there is nothing to accept.");
    } else {
      const payload = { seq: shown.seq, mask_sha256: shown.sha, category: instance.category ?? desk.category };
      session.add("accept", instance.id, payload);
      select(null);
      desk.changed();
    }
  },
  /** Accept every proposal that nobody has decided on. */
  all() {
    const { session } = desk;
    if (!session || !mayWrite()) return;
    desk.confirming = "";
    for (const proposal of session.proposals) acceptAsItIs(session, proposal);
    select(null);
    desk.changed();
  },
  submit() {
    if (!desk.session || !mayWrite()) return;
    const proposals = desk.session.proposals.length;
    const open = desk.session.fold.shown.find((instance) => instance.dirty);
    if (open) {
      select(open.id);
      desk.changed();
      showNote("info", "This object is not accepted. Accept it (Enter) or delete it (Delete), then submit.");
    } else if (proposals > 0 && !confirmed("submit", `${proposals} ${proposals === 1 ? "proposal is" : "proposals are"} not ` +
      "accepted and will not count. Submit again if that is right.")) {
      return;
    } else if (desk.session.fold.shown.length + desk.session.standing.length > 0 || confirmed("submit", "There is no object. Submit again if that is right.")) {
      desk.session.add("submit", null);
    }
  },
  async skip() {
    if (!mayWrite()) return;
    const reason = await askSkip(desk.session?.fold.shown.length ?? 0);
    if (reason !== null && mayWrite()) desk.session?.add("skip", null, { reason });
  },
  /** Give the image back; what was done on it waits as a draft. */
  release() {
    const { session } = desk;
    if (!session || !mayWrite()) return;
    const made = session.fold.shown.filter(({ untouched }) => !untouched).length;
    if (made > 0 && !confirmed("release", `${made === 1 ? "Your object is" : `Your ${made} objects are`} not submitted and will not count. ` +
      "Leave again if that is right: you can put them back if you get the image again.")) return;
    if (made > 0) rememberDraft(session);
    session.add("release", null);
  },
  undo: () => step("undo"),
  redo: () => step("redo"),
  remove() {
    if (view.polygon?.isOpen) step("undo");
    else if (desk.current !== null) remove(desk.current);
  },
  cancel() {
    if (view.cancel()) return;
    if (view.tool !== "click") {
      take(view.tool);
      return;
    }
    const instance = chosen();
    if (instance?.from && !instance.accepted) takeBack(instance);
    else if (instance && !instance.accepted && !instance.empty) remove(instance.id);
    select(null);
    desk.changed();
  },
  /**
   * Show the next candidate or, with -1, the one before.
   * @param {number} step
   * @returns {boolean} Whether there is one.
   */
  candidate(step) {
    const { length } = candidates();
    chooseCandidate(((chosen()?.candidate ?? 0) + step + length) % length);
    return length > 1 || (isWaiting() && desk.session?.online === true);
  },
  box: () => take("box"),
  brush: () => take("brush"),
  eraser: () => take("eraser"),
  polygon: () => take("polygon"),
  larger: () => resize(1.25),
  smaller: () => resize(0.8),
  sign() {
    desk.isNegative = !desk.isNegative;
    desk.changed();
  },
  fill: () => edit("fill_holes", fillHoles, "There is no hole to fill."),
  largest: () => edit("keep_largest", keepLargest, "The object is in one piece."),
  unsure() {
    const instance = chosen();
    if (chosenEarlier() || (instance && !instance.empty)) prompt("flag", { unsure: !instance?.unsure });
  },
  hide() {
    desk.isHidden = !desk.isHidden;
    desk.changed();
  },
  help: () => showKeys(),
  find() {
    $("find").hidden = false;
    $("find").focus();
  },
  fit: () => view.fit(),
  nearer: () => view.zoom(1.25),
  farther: () => view.zoom(0.8),
  inside: () => view.clickAtPointer(true),
  outside: () => view.clickAtPointer(false),
  /** @param {number} index Place of a category in the list. */
  category(index) {
    const wanted = desk.session?.record.categories[index];
    if (wanted) chooseCategory(wanted.number);
  },
};

/**
 * Accept a proposal without a change.
 * @param {import("./session.js").Session} session
 * @param {import("./session.js").Proposal} proposal
 */
function acceptAsItIs(session, { id, mask }) {
  const instanceId = begin(session, id);
  const instance = session.fold.instances.get(instanceId);
  const category = instance?.category ?? mask.category ?? desk.category;
  session.add("accept", instanceId, { seq: instance?.maskSeq, mask_sha256: mask.sha, category });
}

/**
 * Undo what was done to an object: the mask that it was opened from stands.
 * @param {import("./fold.js").Instance} instance
 */
function takeBack(instance) {
  while (isLive() && !instance.untouched && instance.top !== null) desk.session?.add("undo", instance.id, { event_id: instance.top });
}

/** @param {number} radius @returns {number} The nearest that a brush may have. */
const brush = (radius) => Math.min(Math.max(radius, SMALLEST_BRUSH), LARGEST_BRUSH);

/** @param {number} factor Of the brush's radius. */
function resize(factor) {
  desk.radius = brush(desk.radius * factor);
  view.radius = desk.radius;
  view.draw();
}

/** Shift+click says no where the keys are labelme's. */
export const isShiftNegative = () => settings.keys === "labelme";
