/** The page: choose a campaign, claim images, open and leave them. Wires the parts together. */

import { actions, applyPolygon, click, isShiftNegative, polygonClosed, prompt, select, stroke } from "./actions.js";
import { ApiError, getAll, getBlob, identity, patiently, post } from "./api.js";
import { uuid4 } from "./bytes.js";
import { desk, placeOf } from "./desk.js";
import { wireSettings } from "./dialogs.js";
import { offerDraft, rememberDraft } from "./draft.js";
import { askIdentity, attempt as attemptAs, showIdentity } from "./identity.js";
import { installKeys } from "./keys.js";
import { $ } from "./dom.js";
import { hideGate, showBadge, showCampaigns, showGate, showLatency, showNote, showScreen, showUnfinished } from "./panel.js";
import { tasksOf, whyNoTask } from "./progress.js";
import { flash, forget, render, zoomed } from "./render.js";
import { Session } from "./session.js";
import { isLarge, Tiles } from "./tiles.js";
import { view } from "./view.js";

const LOST = "Somebody else has this image now, since it was idle for long. What you did is kept as a draft: " +
  "you can put it back if you get the image again.";
/** Buttons that take a double click as one: its second half would answer their question, or leave the next image unseen. */
const LEAVING = new Set(["submit", "release"]);
/** @type {string | null} Id of the campaign of the image that was opened last: a category is chosen for one campaign. */
let campaignOfLast = null;
/** Counts what was asked for: what still waits for the server then gives way. */
let visit = 0;
/** @type {string | null} Id of the campaign that is asked for an image: a double click is not to claim two. */
let claiming = null;
const linked = () => new URLSearchParams(location.hash.slice(1)).get("session");

/** @param {string} text Of an error that is waited out, on the screen that is shown. */
function tell(text) {
  if (!$("desk").hidden) {
    showNote("error", text);
    return;
  }
  showScreen("start");
  $("start-note").textContent = text;
}

/** @param {string} text Of an error that stays: a desk without work leads nowhere, and the start shows what is so now. */
async function fail(text) {
  if (!desk.session || desk.session.mode === "ended") await toStart().catch(() => {});
  tell(text);
}

/**
 * Run something that talks to the server; failures become notes.
 * @param {() => Promise<void>} action
 */
const attempt = (action) => attemptAs(action, fail);

async function toStart() {
  const isLeft = !$("desk").hidden;
  leave();
  history.replaceState(null, "", location.pathname);
  showScreen("start");
  if (isLeft) $("start").focus();  // else the keyboard begins at the top of the page
  $("start-note").textContent = "Loading…";
  $("unfinished").replaceChildren();  // as it was before this image
  const campaigns = await patiently(() => getAll("/api/campaigns"), (error) => { $("start-note").textContent = error.message; });
  $("start-note").textContent = campaigns.length > 0 ? "" : "There is no campaign yet. `clickloop campaign create` makes one.";
  showCampaigns(campaigns, (campaign) => attempt(() => claim(campaign.id)));
  showUnfinished(await getAll("/api/sessions").catch(() => []), (id) => attempt(() => open(id, true)));
}

/**
 * Repeat a call while the server is away or busy, unless something else is asked for meanwhile.
 * @template T
 * @param {() => Promise<T>} call @param {(text: string) => void} say Why it has to wait.
 * @returns {Promise<T | null>} Null: something else was asked for.
 */
async function unlessElsewhere(call, say) {
  const mine = visit;
  const answer = await patiently(async () => (mine === visit ? call() : null), (error) => {
    if (mine === visit) say(error.message);
  });
  return mine === visit ? answer : null;
}

/** @param {string} campaignId */
async function claim(campaignId) {
  if (claiming === campaignId) return;
  claiming = campaignId;
  const mine = ++visit;
  const claimId = uuid4();
  const given = await unlessElsewhere(() => post(`/api/campaigns/${campaignId}/claim`, { claim_id: claimId }), tell).finally(() => {
    if (mine === visit) claiming = null;
  });
  if (given === null) return;
  if (given.task === null) {
    await toStart();
    $("start-note").textContent = await patiently(() => whyNoTask(campaignId));
    return;
  }
  await open(given.session_id, false);
  for (const image of given.look_ahead) fetchImage(image).catch(() => {});
}

/**
 * @param {{id: string, width: number, height: number}} image
 * @returns {Promise<Blob>} Its file, which the browser keeps; of a large one a picture to begin with.
 */
const fetchImage = (image) => getBlob(`/api/images/${image.id}/${isLarge(image) ? "thumbnail?size=1600" : "content"}`);

/**
 * @param {string} id Of the session.
 * @param {boolean} takeOver
 */
async function open(id, takeOver) {
  leave();
  history.replaceState(null, "", `#session=${id}`);
  const next = await unlessElsewhere(() => Session.load(id, takeOver, listener), tell);
  if (next === null) return;
  if (next.mode === "lost") rememberDraft(next);
  if (next.mode !== "live") {
    await toStart();
    if (next.mode === "lost") $("start-note").textContent = LOST;
    return;
  }
  desk.session = next;
  showNote("info", "");
  showScreen("desk");
  hideGate();
  const { image } = next.record;
  $("where").textContent = `Image ${image.number} · ${image.file_name} · ${image.width}×${image.height}`;
  $("canvas").setAttribute("aria-label", `Image ${image.file_name}`);
  const isElsewhere = next.record.campaign_id !== campaignOfLast;
  if (isElsewhere || placeOf(desk.category) === null) desk.category = next.record.categories[0]?.number ?? null;
  campaignOfLast = next.record.campaign_id;
  resume();
  next.start();
  showProgress(next).catch(() => {});  // nobody waits for it
  offerDraft(next);
  await display(next);
}

/** @param {Session} session */
async function showProgress(session) {
  const tasks = await tasksOf(session.record.campaign_id);
  if (!tasks || desk.session !== session) return;
  const { done = 0, submitted = 0 } = tasks;
  const all = Object.values(tasks).reduce((sum, count) => sum + count, 0);
  $("progress").textContent = `${done + submitted} of ${all} labeled`;
}

/**
 * Fetch and show a session's image.
 * @param {Session} session
 */
async function display(session) {
  const skip = (/** @type {string} */ text) =>
    showGate(text, "Skip it", () => session.add("skip", null, { reason: "not displayable" }));
  try {
    const { image } = session.record;
    const bytes = await unlessElsewhere(() => fetchImage(image), (text) => showNote("info", `The image has to wait: ${text}`));
    if (bytes === null) return;
    const bitmap = await createImageBitmap(bytes).catch(() => null);
    if (desk.session !== session) return;
    if (bitmap) view.show(bitmap, isLarge(image) ? new Tiles(image, (place) => getBlob(`/api/images/${image.id}/tiles/${place}`)) : null);
    else skip("This browser cannot show this image.");
  } catch (error) {
    if (!(error instanceof ApiError) || error.code === "unauthorized" || desk.session !== session) throw error;
    skip(`The image cannot be loaded: ${error.message}`);
  }
  $("canvas").focus();
  draw();
}

function leave() {
  visit += 1;
  claiming = null;
  desk.session?.close();
  desk.session = desk.current = null;
  desk.confirming = "";
  forget();
  view.show(null);
  $("draft").hidden = true;
  $("skipping").close();  // its answer would go to the next image
  $("find").value = "";
  showNote("info", "");
  showBadge("idle", 0);
  showLatency(null);
  $("where").textContent = $("progress").textContent = "";
}

/** Choose the object that was being worked on. */
function resume() {
  const recent = desk.session?.fold.instances.get(desk.session.fold.recent ?? "");
  select(recent && !recent.deleted && (recent.dirty || recent.untouched) ? recent.id : null);
  draw();
}

/** @type {import("./session.js").Listener} */
const listener = {
  changed: draw,
  note: (level, text) => showNote(level, text),
  reloaded: resume,
  mask(_id, shown, before, latency) {
    if (latency) {
      showLatency(latency);
      flash(before, shown);
    }
    draw();
  },
  ended(kind) {
    const campaignId = desk.session?.record.campaign_id;
    draw();  // it is saved, however long what comes next takes
    attempt(() => (kind === "release" ? toStart() : claim(campaignId)));
  },
  async unauthorized(why) {
    const id = desk.session?.id;
    if (!await askIdentity(why)) showNote("error", `${why} Nothing is saved until you press your name and change it or the token.`);
    else if (id) await attempt(() => open(id, true));
  },
};

/** Cover the image where this page may not write. */
function gate() {
  const { session } = desk;
  const id = session?.id ?? "";
  const campaignId = session?.record.campaign_id;
  if (session?.mode === "readonly") {
    showGate("This image was opened in another window. Here it is read-only.", "Go on here", () =>
      attempt(async () => {
        hideGate();
        await open(id, true);
      }));
  } else if (session?.mode === "lost") {
    rememberDraft(session);
    showGate(LOST, "Next image", () => attempt(() => claim(campaignId)));
  } else if (session?.mode === "gone") {
    showGate(session.why, "Choose a campaign", () => attempt(toStart));
  }
}

/** Draw everything as it stands. */
function draw() {
  render();
  if (desk.session) gate();
}

desk.changed = draw;
view.pointing = {
  onClick: click, onBox: (box) => { prompt("box", box); }, onStroke: stroke, onOutline: draw, onClosed: polygonClosed, onZoom: zoomed,
  isShiftNegative,
};
for (const [name, action] of Object.entries(actions)) {
  if (!($(name) instanceof HTMLButtonElement)) continue;
  $(name).onclick = (/** @type {MouseEvent} */ { detail }) => {
    if (detail < 2 || !LEAVING.has(name)) action(0);
  };
}
$("apply").onclick = applyPolygon;
$("simplify").oninput = () => {
  desk.tolerance = Number($("simplify").value);
  view.polygon?.simplify(desk.tolerance);
  draw();
};
$("find").oninput = draw;
$("find").onkeydown = (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" && event.key !== "Escape") return;
  event.preventDefault();
  if (event.key === "Enter") $("categories").querySelector("button")?.click();
  $("find").value = "";
  $("canvas").focus();
  draw();
};
wireSettings(draw);
$("who").onclick = () => attempt(async () => {
  if (await askIdentity("")) await toStart();
});
document.addEventListener("click", (event) => {
  // The path as it was: what the click has taken away is in it, too.
  const path = /** @type {Element[]} */ (event.composedPath().filter((node) => node instanceof Element));
  const isPointer = event.detail > 0 && path.some((node) => node.matches("button, [type=checkbox]")) && path.includes($("desk"));
  if (isPointer && $("gate").hidden) $("canvas").focus();
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    if (!dialog.open && desk.session) $("canvas").focus();
  });
}
addEventListener("hashchange", () => {
  const id = linked();
  if (id !== desk.session?.id) attempt(() => (id ? open(id, true) : toStart()));
});
addEventListener("online", () => desk.session?.hurry());
addEventListener("offline", () => desk.session?.doubt());
addEventListener("storage", showIdentity);  // changed in another window
addEventListener("beforeunload", (event) => {
  if (desk.session && desk.session.pending.length > 0) event.preventDefault();
});
installKeys(() => desk.session !== null && $("gate").hidden);

showIdentity();
attempt(async () => {
  if (!identity.name) await askIdentity("");
  const id = linked();
  await (id ? open(id, true) : toStart());
});
