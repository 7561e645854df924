/** The campaigns' page: a list, and one campaign at a time. The address says what is shown; wires the parts together. */

import { ApiError, PASSING, get, getAll, identity, patiently } from "../api.js";
import { uuid4 } from "../bytes.js";
import { askIdentity, attempt as attemptAs, showIdentity } from "../identity.js";
import { whyNoTask } from "../progress.js";
import {
  cancelJob, claimNext, createCampaign, exportMasks, importMasks, order, pauseOrResume, precompute, prelabel, propose, readImages, retrain,
  rollBack, tryAgain,
} from "./actions.js";
import { $, make } from "../dom.js";
import { badge, button, counted, link, number } from "./dom.js";
import { gallery } from "./gallery.js";
import { LiveJobs, endOf, jobTable } from "./jobs.js";
import { overview } from "./overview.js";
import { adapterView, exportView } from "./results.js";
import { shares } from "./charts.js";

const TABS = /** @type {const} */ ([["overview", "Overview"], ["images", "Images"], ["adapters", "Adapters"], ["exports", "Exports"], ["jobs", "Jobs"]]);
/** Counts what was shown, so that an answer that comes too late is dropped. */
let visit = 0;
/** @type {LiveJobs | null} */
let live = null;
/** @type {Map<string, {id: string, name: string}[]>} Who worked on a campaign, by its id: asked for once, to filter by. */
const annotators = new Map();
/** @type {string | null} What the page showed last: a new one gets the focus. */
let place = null;

const address = () => new URLSearchParams(location.hash.slice(1));
/** @param {Record<string, string>} values */
const hash = (values) => `#${new URLSearchParams(values)}`;

/**
 * Run something that talks to the server; failures are told.
 * @param {() => Promise<void>} action
 */
const attempt = (action) => attemptAs(() => {
  $("problem").textContent = "";
  return action();
}, (text) => { $("problem").textContent = text; });

const tryingAgain = (/** @type {ApiError} */ error) => `${error.message} Trying again.`;
/** What the last poll had to tell, so that the next good one takes it away and nothing else. */
let pollProblem = "";

/** @param {unknown} error Of the last poll, null for none. */
function onPoll(error) {
  if (error !== null && !(error instanceof ApiError)) throw error;
  if (pollProblem && $("problem").textContent === pollProblem) $("problem").textContent = "";
  pollProblem = error === null ? "" : PASSING.has(error.code) ? tryingAgain(error) : error.message;
  if (pollProblem) $("problem").textContent = pollProblem;
}

/** Show what the address names. */
async function show() {
  const mine = ++visit;
  live?.stop();
  live = null;
  const params = address();
  const id = params.get("campaign");
  $("content").ariaBusy = "true";
  const content = await (id ? campaignPage(id, params) : listPage()).finally(() => {
    if (mine === visit) $("content").ariaBusy = "false";
  });
  if (mine !== visit) {
    content.live.stop();
    return;
  }
  live = content.live;
  live.start();
  const focused = document.activeElement?.id;
  // Read here, not noted on toggle: that event comes later than the click, and the page is drawn anew whenever a job ends.
  const more = place === (id ?? "") && document.querySelector("details.more[open]") !== null;
  $("content").replaceChildren(content.element);
  content.element.querySelector("details.more")?.toggleAttribute("open", more);
  document.title = `${content.title} · Clickloop`;
  if (place !== null && place !== id) $("view").focus();
  else if (focused) $(focused)?.focus();
  place = id ?? "";
}

/** Show it, however often the server has to be asked. */
async function showPatiently() {
  try {
    await patiently(show, (error) => { $("problem").textContent = tryingAgain(error); });
    $("problem").textContent = "";
  } catch (error) {
    if (error instanceof ApiError && error.code === "not_found") $("content").replaceChildren(link("#", "All campaigns"));
    throw error;
  }
}

const refresh = () => attempt(showPatiently);

/**
 * Do something with the campaign, say so and show what came of it.
 * @param {() => Promise<any>} action
 * @param {string} said
 */
async function act(action, said) {
  const done = await action();
  if (done === null) return;
  $("said").textContent = done.problem ?? said;
  await refresh();
  const job = done.request ?? done;
  if (job.kind) live?.follow(job.id);
}

/** @param {any} job */
async function cancel(job) {
  await act(() => cancelJob(job), `The ${job.kind} stops at its next batch.`);
  if (document.activeElement === document.body) $("view").focus();  // its button is gone
}

/** @param {any} job */
const retry = (job) => act(() => tryAgain(job), `The ${job.kind} was asked for again.`);

/** @param {string[]} ids Of jobs that have ended: it is said how. */
const ended = (ids) => attempt(async () => {
  const jobs = await Promise.all(ids.map((id) => get(`/api/requests/${id}`)));
  await showPatiently();
  $("said").textContent = jobs.map(endOf).join(" ");
});

async function listPage() {
  const [campaigns, progress] = await Promise.all([getAll("/api/campaigns"), get("/api/progress")]);
  const tasksOf = new Map(progress.results.map((/** @type {any} */ one) => [one.campaign_id, one.tasks]));
  const items = campaigns.map((campaign) => {
    const tasks = tasksOf.get(campaign.id) ?? {};
    const states = ["done", "submitted", "leased", "skipped", "new"].map((name) => ({ name, count: tasks[name] ?? 0 }));
    const all = states.reduce((sum, { count }) => sum + count, 0);
    return make("li", { className: "card campaign" },
      make("div", { className: "line" },
        make("h3", {}, link(hash({ campaign: campaign.id }), campaign.name)), badge(campaign.state)),
      make("p", { className: "quiet" }, `${campaign.model_id} · ${campaign.live_adapter ? `live version ${campaign.live_version}` : "bare model"} · ${counted(campaign.categories.length, "category", "categories")}`),
      shares("Images by state", states),
      make("p", { className: "quiet small", textContent: all ? `${number((100 * (states[0].count + states[1].count)) / all)} % of ${counted(all, "image")} labeled` : "No image yet" }));
  });
  const jobs = new LiveJobs(null, new Map(campaigns.map((one) => [one.id, one.name])), ended, cancel, onPoll);
  const element = make("div", { className: "stack" },
    make("div", { className: "head" }, make("h2", { textContent: "Campaigns" }),
      button("New campaign", () => act(createCampaign, "The campaign is being created."), { className: "main", id: "new-campaign" })),
    jobs.element,
    items.length ? make("ul", { className: "cards", "aria-label": "Campaigns" }, ...items)
      : make("p", { className: "quiet", textContent: "There is no campaign yet. Make one here, or with `clickloop campaign create`." }));
  return { element, title: "Campaigns", live: jobs };
}

/** @param {string} id @param {URLSearchParams} params */
async function campaignPage(id, params) {
  const tab = TABS.find(([name]) => name === params.get("tab"))?.[0] ?? "overview";
  const base = `/api/campaigns/${encodeURIComponent(id)}`;
  const campaign = await get(base);
  const claimId = uuid4();  // of this drawing of the page: a double click is not to claim two images
  const jobs = new LiveJobs(campaign.id, new Map(), ended, cancel, onPoll);
  const bodies = {
    overview: async () => {
      const [status, statistics] = await Promise.all([get(`${base}/status`), get(`${base}/statistics`)]);
      annotators.set(campaign.id, statistics.by_annotator);
      return overview(status, statistics);
    },
    images: async () => {
      if (!annotators.has(campaign.id)) annotators.set(campaign.id, (await get(`${base}/statistics`)).by_annotator);
      return gallery({ campaign, annotators: annotators.get(campaign.id) ?? [], params, go, attempt });
    },
    adapters: async () => {
      const [adapters, requests] = await Promise.all([getAll(`${base}/adapters`), getAll(`/api/requests?campaign=${campaign.id}`)]);
      return adapterView(campaign, adapters, requests, refresh);
    },
    exports: async () => exportView(await getAll(`${base}/exports`), attempt),
    jobs: async () => {
      const requests = await getAll(`/api/requests?campaign=${campaign.id}`);
      return requests.length ? jobTable(requests, cancel, retry) : make("p", { className: "quiet", textContent: "No job yet." });
    },
  };
  const body = await bodies[tab]().catch((error) => {
    if (!(error instanceof ApiError) || error.code !== "forbidden") throw error;
    return make("p", { className: "quiet", textContent: error.message });
  });
  const active = campaign.state === "active";
  const actions = make("div", { className: "actions", role: "group", "aria-label": "Actions" },
    button("Label next image", () => attempt(label), { className: "main", id: "do-label", disabled: !active }),
    button("Precompute…", () => act(() => precompute(campaign), "Precompute was asked for."), { id: "do-precompute" }),
    button("Retrain…", () => act(() => retrain(campaign), "Retraining was asked for."), { id: "do-retrain" }),
    button("Export…", () => act(() => exportMasks(campaign), "An export was asked for."), { id: "do-export" }),
    button("Roll back…", () => act(() => rollBack(campaign), "Rolled back."), { id: "do-rollback", disabled: campaign.live_adapter === null }),
    button(active ? "Pause…" : "Resume…", () => act(() => pauseOrResume(campaign), active ? "Paused." : "Resumed."), { id: "do-pause" }),
    make("details", { className: "more" },
      make("summary", { textContent: "More", id: "do-more" }),
      make("div", { className: "actions" },
        button("Read images…", () => act(() => readImages(campaign), "The images will be read."), { id: "do-ingest" }),
        button("Import masks…", () => act(() => importMasks(campaign), "An import was asked for."), { id: "do-import" }),
        button("Prelabel…", () => act(() => prelabel(campaign), "Proposals of the model were asked for."), { id: "do-prelabel" }),
        button("Propose look-alikes…", () => act(() => propose(campaign), "Proposals were asked for."), { id: "do-propose" }),
        button("Order…", () => act(() => order(campaign), "Another order was asked for."), { id: "do-order" }))));
  const element = make("div", { className: "stack" },
    make("nav", { className: "trail", "aria-label": "Where you are" }, link("#", "Campaigns"), " / "),
    make("div", { className: "head" },
      make("div", {}, make("h2", {}, campaign.name, " ", badge(campaign.state)),
        make("p", { className: "quiet", textContent: `${campaign.model_id} · ${campaign.live_adapter ? `adapter live, version ${campaign.live_version}` : "bare model"} · ${campaign.source_url}` })),
      actions),
    jobs.element,
    make("nav", { className: "tabs", "aria-label": "Parts of the campaign" }, ...TABS.map(([name, text]) =>
      link(hash({ campaign: campaign.id, tab: name }), text, { id: `tab-${name}`, ...(name === tab ? { "aria-current": "page" } : {}) }))),
    body);
  return { element, title: campaign.name, live: jobs };

  async function label() {
    const claim = await claimNext(campaign, claimId);
    if (claim.task === null) $("said").textContent = await whyNoTask(campaign.id);
    else location.href = `./#session=${claim.session_id}`;
  }

  /** @param {Record<string, string>} changes */
  function go(changes) {
    const next = address();
    for (const [name, value] of Object.entries(changes)) next.set(name, value);
    location.hash = `#${next}`;
  }
}

$("who").onclick = () => attempt(async () => {
  if (await askIdentity("")) await showPatiently();
});
document.querySelector(".jump")?.addEventListener("click", (event) => {
  event.preventDefault();
  $("view").focus();
});
addEventListener("hashchange", () => {
  $("said").textContent = "";
  refresh();
});
addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });  // the browser kept it as it was left
document.addEventListener("visibilitychange", () => { if (!document.hidden) live?.hurry(); });

showIdentity();
attempt(async () => {
  if (!identity.name) await askIdentity("");
  await showPatiently();
});
