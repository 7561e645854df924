/** Jobs in words, and those that wait or run, followed live. */

import { get } from "../api.js";
import { make } from "../dom.js";
import { badge, button, counted, duration, number, table, when } from "./dom.js";

const PERIOD_MS = 2000;

/** @param {any} job @returns {string} What it has come to, or why it failed. */
export function outcomeOf(job) {
  if (job.error) return job.error;
  const result = job.result ?? {};
  if (job.kind === "retrain" && result.outcome) return [result.outcome, ...(result.reasons ?? [])].join(": ").replace(": better", ", better");
  if (job.kind === "export" && result.counts) return `snapshot ${result.snapshot}, ${counted(result.counts.annotations ?? 0, "mask")} on ${counted(result.counts.images ?? 0, "image")}`;
  const figures = Object.entries(result).filter(([, value]) => typeof value === "number" && value !== 0);
  return figures.slice(0, 5).map(([name, value]) => `${name.replaceAll("_", " ")} ${number(/** @type {number} */ (value), Number.isInteger(value) ? 0 : 2)}`).join(", ");
}

/** @param {any} job That is over. @returns {string} How it ended, as a sentence. */
export function endOf(job) {
  if (job.state === "cancelled") return `The ${job.kind} was cancelled.`;
  const outcome = outcomeOf(job);
  return `The ${job.kind} ${job.state === "failed" ? "failed" : "is done"}${outcome ? `: ${outcome}` : ""}`.replace(/[^.]$/, "$&.");
}

/** @param {any} job @returns {[done: number, total: number] | null} How far it is, where it says so. */
function extentOf({ progress }) {
  const [done, total] = [progress.done ?? progress.images, progress.total ?? progress.of];
  return typeof done === "number" && typeof total === "number" && total > 0 ? [done, total] : null;
}

/** @param {any} job */
function wordsOf(job) {
  if (job.cancel) return "stops at its next batch";
  if (job.state === "queued") return job.attempt > 0 ? "waits for another try" : "waits for the runner";
  const extent = extentOf(job);
  const step = job.progress.step ?? "starts";
  const words = [extent ? `${step} ${number(extent[0])} of ${number(extent[1])}` : step];
  if (typeof job.progress.loss === "number") words.push(`loss ${number(job.progress.loss, 4)}`);
  if (job.progress.paused) words.push(`paused: ${job.progress.paused}`);
  return words.join(", ");
}

/** @typedef {(job: any) => void} OnJob */

/** @param {any[]} jobs @param {OnJob} onCancel @param {OnJob} onRetry @returns {HTMLElement} */
export function jobTable(jobs, onCancel, onRetry) {
  return table("Jobs, newest first", ["Job", "State", "Asked for", "Took", "Outcome", ""], jobs.map((job) => {
    const active = job.state === "queued" || job.state === "running";
    const took = active ? null : duration((Date.parse(job.updated_at) - Date.parse(job.created_at)) / 1000);
    const isRetried = (job.state === "failed" || job.state === "cancelled") && !job.payload.create;  // a campaign is not made twice
    const answer = active && !job.cancel ? button("Cancel", () => onCancel(job), { ariaLabel: `Cancel the ${job.kind}` })
      : isRetried ? button("Try again…", () => onRetry(job), { ariaLabel: `Try the ${job.kind} again` }) : "";
    return [job.kind, badge(job.state), when(job.created_at), took, make("span", { className: "words", textContent: active ? wordsOf(job) : outcomeOf(job) || "–" }), answer];
  }));
}

/** The jobs that wait or run, asked for again and again while the page is seen. */
export class LiveJobs {
  /** @type {Map<string, {row: HTMLElement, words: any, bar: any, cancel: any}>} */
  #rows = new Map();
  /** @type {Set<string>} */
  #known = new Set();
  #timer = 0;
  #over = false;

  /**
   * @param {string | null} campaignId Null: of all campaigns.
   * @param {Map<string, string>} names Of campaigns by id, to be told beside the job.
   * @param {(ids: string[]) => void} onEnd After jobs that it has seen, or was told to follow, have ended.
   * @param {OnJob} onCancel
   * @param {(error: unknown) => void} onAsked After every time that the server was asked; null: it answered.
   */
  constructor(campaignId, names, onEnd, onCancel, onAsked) {
    this.path = `/api/requests?active=true${campaignId ? `&campaign=${campaignId}` : ""}`;
    this.names = names;
    this.onEnd = onEnd;
    this.onCancel = onCancel;
    this.onAsked = onAsked;
    this.list = make("ul", {});
    this.element = make("section", { className: "live", "aria-label": "Running jobs", hidden: true }, this.list);
  }

  /** Ask now, and from then on. */
  start() { this.#ask(); }

  /** @param {string} id Of a job that was asked for: its end is told, even if it is over before it is seen. */
  follow(id) {
    this.#known.add(id);
    this.hurry();
  }

  /** Ask no more. */
  stop() {
    this.#over = true;
    clearTimeout(this.#timer);
  }

  /** Ask at once, since something was asked for. */
  hurry() {
    clearTimeout(this.#timer);
    this.#ask();
  }

  async #ask() {
    try {
      if (!document.hidden) {
        this.#show((await get(this.path)).results);
        this.onAsked(null);
      }
    } catch (error) {
      if (!this.#over) this.onAsked(error);
    }
    clearTimeout(this.#timer);
    if (!this.#over) this.#timer = setTimeout(() => this.#ask(), PERIOD_MS);
  }

  /** @param {any[]} jobs */
  #show(jobs) {
    if (this.#over) return;
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, { row }] of this.#rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    for (const job of jobs.toReversed()) this.#update(job);
    this.element.hidden = jobs.length === 0;
    const ended = [...this.#known].filter((id) => !ids.has(id));
    this.#known = ids;
    if (ended.length > 0) this.onEnd(ended);
  }

  /** @param {any} job */
  #update(job) {
    const shown = this.#rows.get(job.id) ?? this.#add(job);
    const words = wordsOf(job);
    if (shown.words.textContent !== words) shown.words.textContent = words;
    const extent = extentOf(job);
    if (extent && job.state === "running") [shown.bar.value, shown.bar.max] = extent;
    else shown.bar.removeAttribute("value");
    shown.cancel.disabled = job.cancel;
  }

  /** @param {any} job */
  #add(job) {
    const [words, bar] = [make("span", { className: "quiet" }), make("progress", { "aria-label": `Progress of the ${job.kind}` })];
    const cancel = button("Cancel", () => this.onCancel(job), { ariaLabel: `Cancel the ${job.kind}` });
    const name = this.names.get(job.campaign_id) ?? job.payload.create?.name;
    const row = make("li", {}, make("span", { className: "what" }, make("strong", { textContent: job.kind }), name ? ` ${name}` : ""), bar, words, cancel);
    const shown = { row, words, bar, cancel };
    this.#rows.set(job.id, shown);
    this.list.append(row);
    return shown;
  }
}
