/** The page: choose a campaign, claim images, click objects, submit. Wires the parts together. */

import { ApiError, call, get, getAll, identity, patiently, post } from "./api.js";
import { uuid4 } from "./bytes.js";
import { installKeys } from "./keys.js";
import { colourOf, tint } from "./overlay.js";
import {
  $, askIdentity, hideGate, showBadge, showCampaigns, showCandidates, showCategories, showGate, showIdentity, showNote,
  showObjects, showScreen,
} from "./panel.js";
import { Session } from "./session.js";
import { fillHoles, keepLargest, paint } from "./tools.js";
import { View } from "./view.js";

/** @type {Session | null} */
let session = null;
/** @type {string | null} Id of the object that clicks go to; null: the next click begins one. */
let current = null;
/** @type {number | null} Number of the category for the next objects. */
let category = null;
let hidden = false;
/** Radius of the brush in pixels of the image. */
let radius = 8;
/** What must be asked for twice in a row, and was asked for once. */
let confirming = "";
/** @type {Map<string, {key: string, layer: import("./view.js").Layer | null}>} */
const tinted = new Map();
const view = new View($("canvas"), { onClick, onBox: (box) => prompt("box", box), onStroke });

const LAST = "clickloop.last";
const linked = () => new URLSearchParams(location.hash.slice(1)).get("session");
const chosen = () => (current === null ? undefined : session?.fold.instances.get(current));
/** @param {number | null} number */
const placeOf = (number) => {
  const index = session?.record.categories.findIndex((/** @type {any} */ item) => item.number === number) ?? -1;
  return index < 0 ? null : index;
};

/** Run something that talks to the server; failures become notes, a missing token is asked for. */
async function attempt(/** @type {() => Promise<void>} */ action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "unauthorized") {
      await askIdentity(error.message);
      await attempt(action);
    } else if ($("desk").hidden) $("start-note").textContent = error.message;
    else showNote("error", error.message);
  }
}

async function toStart() {
  leave();
  history.replaceState(null, "", location.pathname);
  showScreen("start");
  $("start-note").textContent = "Loading…";
  const campaigns = await patiently(() => getAll("/api/campaigns"), (error) => { $("start-note").textContent = error.message; });
  $("start-note").textContent = campaigns.length > 0 ? "" : "There is no campaign yet. `clickloop campaign create` makes one.";
  showCampaigns(campaigns, (campaign) => attempt(() => claim(campaign.id)));
  const last = localStorage.getItem(LAST);
  const record = last ? await get(`/api/sessions/${last}`).catch(() => null) : null;
  $("continue").hidden = record?.state !== "open";
  $("continue").onclick = () => attempt(() => open(record.id, true));
}

/** @param {string} campaignId */
async function claim(campaignId) {
  const claimId = uuid4();
  const given = await patiently(() => post(`/api/campaigns/${campaignId}/claim`, { claim_id: claimId }),
    (error) => showNote("info", error.message));
  if (given.task === null) {
    await toStart();
    $("start-note").textContent = "Nothing is left to label in this campaign. Thank you!";
    return;
  }
  await open(given.session_id, false);
  for (const image of given.look_ahead) fetchImage(image).catch(() => {});
}

/** @param {{id: string}} image @returns {Promise<Blob>} Its file, which the browser keeps. */
const fetchImage = async (image) => (await call(`/api/images/${image.id}/content`)).blob();

/** @param {string} id Of the session. @param {boolean} takeOver */
async function open(id, takeOver) {
  leave();
  const next = await Session.load(id, takeOver, listener);
  if (next.mode !== "live") {
    await toStart();
    return;
  }
  session = next;
  history.replaceState(null, "", `#session=${id}`);
  localStorage.setItem(LAST, id);
  showScreen("desk");
  hideGate();
  const { image } = next.record;
  $("where").textContent = `Image ${image.number} · ${image.file_name} · ${image.width}×${image.height}`;
  $("canvas").setAttribute("aria-label", `Image ${image.file_name}`);
  if (placeOf(category) === null) category = next.record.categories[0]?.number ?? null;
  resume();
  next.start();
  const bytes = await patiently(() => fetchImage(image));
  const bitmap = await createImageBitmap(bytes).catch(() => null);
  if (session !== next) return;
  if (bitmap) view.show(bitmap);
  else showGate("This browser cannot show this image.", "Skip it", () => next.add("skip", null, { reason: "not displayable" }));
  $("canvas").focus();
  render();
}

function leave() {
  session?.close();
  session = null;
  current = null;
  confirming = "";
  tinted.clear();
  view.show(null);
  showNote("info", "");
  showBadge("idle", 0);
  $("latency").textContent = "";
  $("where").textContent = "";
}

/** Choose the object that was being worked on. */
function resume() {
  const recent = session?.fold.instances.get(session.fold.recent ?? "");
  current = recent && !recent.deleted && recent.dirty ? recent.id : null;
  render();
}

/** @type {import("./session.js").Listener} */
const listener = {
  changed: () => render(),
  note: (level, text) => showNote(level, text),
  reloaded: resume,
  mask(_id, _shown, latencyMs) {
    if (latencyMs !== null) $("latency").textContent = `${Math.round(latencyMs)} ms`;
    render();
  },
  ended(kind) {
    const campaignId = session?.record.campaign_id;
    attempt(() => (kind === "release" ? toStart() : claim(campaignId)));
  },
  unauthorized: () => attempt(async () => {
    await askIdentity("The server does not accept this token.");
    if (session) await open(session.id, true);
  }),
};

/** @param {import("./view.js").Click} click */
function onClick(click) {
  if (current === null && !click.is_positive) showNote("info", "Begin an object with a left click on it.");
  else prompt("click", click);
}

/** @param {import("./view.js").Stroke} stroke */
function onStroke(stroke) {
  if (session?.mode !== "live") return;
  const payload = paint(stroke, session.record.image.width, session.record.image.height);
  if (current === null && !stroke.is_positive) showNote("info", "Begin an object by painting with the left button.");
  else if (payload) prompt("brush", payload);
}

/** Add to the current object, or begin one with it. @param {string} kind @param {object} payload */
function prompt(kind, payload) {
  if (session?.mode !== "live") return;
  confirming = "";
  if (current === null) {
    current = uuid4();
    session.add("open", current);
  }
  showNote("info", "");
  session.add(kind, current, payload);
}

/** Whether the mask of the current object's last edit has yet to come. */
function isWaiting() {
  const instance = chosen();
  return instance !== undefined && session !== null && session.isBehind(instance);
}

/** Scores of the current object's candidates, in their order; none while they may change. */
function candidates() {
  return current === null || isWaiting() ? [] : session?.masks.get(current)?.scores ?? [];
}

/** @param {number} index */
function chooseCandidate(index) {
  if (index < candidates().length && index !== chosen()?.candidate) session?.add("candidate", current, { index });
}

/**
 * Change the current object's mask without the model.
 * @param {string} tool
 * @param {(mask: import("./bytes.js").Mask) => import("./tools.js").Change | null} work
 * @param {string} nothing What to say when there is nothing to do.
 */
function edit(tool, work, nothing) {
  const shown = session?.masks.get(current ?? "");
  if (session?.mode !== "live" || !shown) return;
  if (isWaiting()) {
    showNote("info", "The mask of your last edit is not here yet. Change it when you see it.");
    return;
  }
  const changed = work(shown.mask);
  if (changed) session.add("mask_edit", current, { tool, ...changed });
  else showNote("info", nothing);
}

/** Ask twice for what cannot be undone. @param {string} what @param {string} question @returns {boolean} Whether to do it. */
function confirmed(what, question) {
  if (confirming === what) return true;
  confirming = what;
  showNote("info", question);
  return false;
}

/** @param {"undo" | "redo"} kind */
function step(kind) {
  const top = kind === "undo" ? "top" : "redoTop";
  const recent = session?.fold.instances.get(session.fold.recent ?? "");
  const target = [chosen(), recent].find((instance) => instance?.[top]);
  if (!session || !target) return;
  confirming = "";
  session.add(kind, target.id, { event_id: target[top] });
  current = !target.deleted && target.dirty ? target.id : null;
  render();
}

/** @param {string} id */
function remove(id) {
  session?.add("delete", id);
  if (current === id) current = null;
  render();
}

/** @type {import("./keys.js").Actions} */
const actions = {
  accept() {
    const instance = chosen();
    if (!session || !instance || instance.empty || session.mode !== "live") return;
    const shown = session.masks.get(instance.id);
    if (!shown || session.isBehind(instance)) {
      showNote("info", "The mask of your last edit is not here yet. Accept it when you see it.");
    } else if (shown.mask.pixels.length === 0) {
      showNote("info", "The mask is empty: there is nothing to accept.");
    } else {
      const payload = { seq: shown.seq, mask_sha256: shown.sha, category: instance.category ?? category };
      session.add("accept", instance.id, payload);
      current = null;
      render();
    }
  },
  submit() {
    if (session?.mode !== "live") return;
    const open = session.fold.shown.find((instance) => instance.dirty);
    if (open) {
      current = open.id;
      render();
      showNote("info", "This object is not accepted. Accept it (Enter) or delete it (Delete), then submit.");
    } else if (session.fold.shown.length > 0 || confirmed("submit", "There is no object. Submit again if that is right.")) {
      session.add("submit", null);
    }
  },
  skip() {
    if (session?.mode !== "live") return;
    if (session.fold.shown.length === 0 || confirmed("skip", "Skip again to leave this image without its objects.")) {
      session.add("skip", null);
    }
  },
  undo: () => step("undo"),
  redo: () => step("redo"),
  remove() {
    if (current !== null) remove(current);
  },
  cancel() {
    if (view.cancel()) return;
    if (view.brush !== null) {
      actions.brush();
      return;
    }
    const instance = chosen();
    if (instance && !instance.accepted && !instance.empty) remove(instance.id);
    current = null;
    render();
  },
  candidate(step) {
    const { length } = candidates();
    chooseCandidate(((chosen()?.candidate ?? 0) + step + length) % length);
    return length > 1 || (isWaiting() && session?.online === true);
  },
  brush() {
    view.brush = view.brush === null ? radius : null;
    render();
  },
  resize(factor) {
    radius = Math.min(Math.max(radius * factor, 1), 500);
    if (view.brush !== null) view.brush = radius;
    view.draw();
  },
  fill: () => edit("fill_holes", fillHoles, "There is no hole to fill."),
  largest: () => edit("keep_largest", keepLargest, "The object is in one piece."),
  hide() {
    hidden = !hidden;
    render();
  },
  help: () => $("keys").showModal(),
  category(index) {
    const wanted = session?.record.categories[index];
    if (wanted) choose(wanted.number);
  },
};

/** @param {number} number Of a category. */
function choose(number) {
  const instance = chosen();
  category = number;
  if (session && instance && instance.category !== number) session.add("category", instance.id, { category: number });
  render();
}

/** @param {import("./fold.js").Instance} instance @returns {import("./view.js").Layer | null} */
function layerOf(instance) {
  const shown = session?.masks.get(instance.id);
  if (!session || !shown) return null;
  const place = placeOf(instance.category ?? (instance.accepted ? null : category));
  const isCurrent = instance.id === current;
  const key = [shown.sha, place, isCurrent].join();
  const known = tinted.get(instance.id);
  if (known?.key === key) return known.layer;
  const { width, height } = session.record.image;
  const thickness = Math.max(1, Math.round(Math.max(width, height) / 800));
  const canvas = tint(shown.mask, colourOf(place), isCurrent ? 0.5 : 0.3, thickness);
  const layer = canvas && { canvas, x: shown.mask.x, y: shown.mask.y };
  tinted.set(instance.id, { key, layer });
  return layer;
}

/** @param {number} count @param {string} one @param {string} more @returns {string} Empty for none. */
const counted = (count, one, more) => (count > 0 ? `${count} ${count === 1 ? one : more}` : "");

/** Draw everything as it stands. */
function render() {
  if (!session) return;
  const { fold, record, mode, pending } = session;
  const seen = fold.shown;
  const instance = chosen();
  view.layers = hidden ? [] : seen.flatMap((item) => layerOf(item) ?? []);
  view.clicks = /** @type {any} */ (hidden ? [] : instance?.clicks ?? []);
  view.boxes = /** @type {any} */ (hidden ? [] : instance?.boxes ?? []);
  view.draw();
  if (!isWaiting()) showCandidates(candidates(), instance?.candidate ?? 0, chooseCandidate);
  showCategories(record.categories, instance?.category ?? category, choose);
  showObjects(seen.map((item, index) => {
    const place = placeOf(item.category ?? (item.accepted ? null : category));
    const name = place === null ? "object" : record.categories[place].name;
    const made = [
      counted(item.boxes.length, "box", "boxes"), counted(item.clicks.length, "click", "clicks"),
      counted(item.strokes.length, "stroke", "strokes"),
    ];
    const state = item.accepted ? (item.dirty ? "changed" : "accepted") : made.filter(Boolean).join(", ");
    return { id: item.id, label: `${index + 1} ${name}`, state, colour: place, chosen: item.id === current };
  }), (id) => {
    current = id === current ? null : id;
    render();
  }, remove);
  showBadge(session.online ? (pending.length > 0 ? "saving" : "saved") : "offline", pending.length);
  const live = mode === "live";
  const recent = fold.instances.get(fold.recent ?? "");
  $("undo").disabled = !live || !(instance?.top ?? recent?.top);
  $("redo").disabled = !live || !(instance?.redoTop ?? recent?.redoTop);
  for (const id of ["accept", "fill", "largest"]) $(id).disabled = !live || !instance || instance.empty;
  for (const id of ["submit", "skip", "release"]) $(id).disabled = !live;
  $("hide").ariaPressed = String(hidden);
  $("brush").ariaPressed = String(view.brush !== null);
  gate();
}

/** Cover the image where this page may not write. */
function gate() {
  const id = session?.id ?? "";
  const campaignId = session?.record.campaign_id;
  if (session?.mode === "readonly") {
    showGate("This image was opened in another window. Here it is read-only.", "Go on here", () =>
      attempt(async () => {
        hideGate();
        await open(id, true);
      }));
  } else if (session?.mode === "lost") {
    showGate("Somebody else has this image now, since it was idle for long. What you saved is kept.", "Next image", () =>
      attempt(() => claim(campaignId)));
  }
}

for (const id of ["undo", "redo", "brush", "fill", "largest", "hide", "accept", "submit", "skip", "help"]) $(id).onclick = () => actions[id]();
$("fit").onclick = () => view.fit();
$("release").onclick = () => session?.add("release", null);
$("who").onclick = () => attempt(async () => {
  await askIdentity("");
  await toStart();
});
document.addEventListener("click", (event) => {
  const isPointer = event.detail > 0 && event.target instanceof Element && event.target.closest("#desk button");
  if (isPointer && $("gate").hidden) $("canvas").focus();
});
addEventListener("online", () => session?.hurry());
addEventListener("beforeunload", (event) => {
  if (session && session.pending.length > 0) event.preventDefault();
});
installKeys(actions, view, () => session !== null && $("gate").hidden);

showIdentity();
attempt(async () => {
  if (!identity.name) await askIdentity("");
  const id = linked();
  await (id ? open(id, true).catch(toStart) : toStart());
});
