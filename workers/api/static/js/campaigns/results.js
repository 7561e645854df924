/** What a campaign brought forth: adapters with the gate's decisions, and exports. */

import { getBlob } from "../api.js";
import { linksWork, promote } from "./actions.js";
import { lyingBars } from "./charts.js";
import { make } from "../dom.js";
import { badge, button, counted, link, number, size, table, when } from "./dom.js";
import { outcomeOf } from "./jobs.js";

/** @param {any} adapter @returns {string} */
function decisionOf({ gate, state }) {
  if (gate.promote === undefined) return state === "candidate" ? "not judged yet" : "";
  return gate.promote ? "better on the held-out images" : (gate.reasons ?? []).join("; ");
}

/** @param {any} campaign @param {any[]} adapters Oldest first. @param {any[]} jobs @param {() => void} changed @returns {HTMLElement} */
export function adapterView(campaign, adapters, jobs, changed) {
  const bars = adapters.filter(({ gate }) => gate.figures?.improvement).map(({ number: n, gate }) => {
    const { mean, low, high } = gate.figures.improvement;
    return { label: `adapter ${n}`, value: mean, low, high };
  });
  const rows = adapters.toReversed().map((/** @type {any} */ adapter) => {
    const { figures = {} } = adapter.gate;
    const noc = figures.improvement ? make("span", {}, `${number(figures.live_noc, 2)} → ${number(figures.candidate_noc, 2)}`, make("br"),
      make("small", { className: "quiet", textContent: `saves ${number(figures.improvement.mean, 2)} (${number(figures.improvement.low, 2)} to ${number(figures.improvement.high, 2)})` })) : null;
    const may = !adapter.live && adapter.gate.promote === true && adapter.state !== "rejected";
    return [`${adapter.number} · ${adapter.kind}`, badge(adapter.live ? "live" : adapter.state), when(adapter.created_at), noc,
      make("span", { className: "words", textContent: decisionOf(adapter) }),
      may ? button("Let it go live", async () => { if (await promote(campaign, adapter)) changed(); }, { ariaLabel: `Let adapter ${adapter.number} go live` }) : ""];
  });
  const others = jobs.filter((job) => job.kind === "retrain" && job.state !== "queued" && job.state !== "running" && !job.result?.digest);
  return make("div", { className: "stack" },
    bars.length > 0 && make("div", { className: "plots wide" }, lyingBars({
      title: "Clicks saved per held-out object, with the 95 % interval", name: "Clicks saved", format: (value) => number(value, Number.isInteger(value) ? 0 : 1), bars: bars.slice(-12),
    })),
    make("h3", { textContent: "Adapters and the gate's decisions" }),
    rows.length ? table("Adapters, newest first", ["Adapter", "State", "Made", "NoC@90, live → new", "Decision", ""], rows)
      : make("p", { className: "quiet", textContent: "No adapter yet: the bare model is live. Retrain once some masks are accepted." }),
    others.length > 0 && make("h3", { textContent: "Retrains that made no adapter" }),
    others.length > 0 && table("Retrains that made no adapter, newest first", ["Asked for", "State", "Why"],
      others.map((job) => [when(job.created_at), badge(job.state), make("span", { className: "words", textContent: outcomeOf(job) || "–" })])));
}

/**
 * Fetch a file with the token, which a link cannot carry, and save it.
 * @param {string} path
 * @param {string} name
 */
async function save(path, name) {
  const url = URL.createObjectURL(await getBlob(path));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** @param {any[]} exports Newest first. @param {(action: () => Promise<void>) => Promise<void>} attempt @returns {HTMLElement} */
export function exportView(exports, attempt) {
  if (exports.length === 0) return make("p", { className: "quiet", textContent: "Nothing was exported yet." });
  return make("ul", { className: "exports" }, ...exports.map((one) => {
    const rest = one.num_files - one.files.length;
    const archive = `/api/requests/${one.request_id}/archive`;
    const whole = linksWork() ? link(archive, "Download all", { download: "", className: "as-button" })
      : button("Download all", () => attempt(() => save(archive, `snapshot-${one.snapshot}.tar`)));
    const files = one.files.map((/** @type {any} */ file) => {
      const path = `/api/requests/${one.request_id}/files/${file.path.split("/").map(encodeURIComponent).join("/")}`;
      const name = file.path.split("/").at(-1);
      const get = linksWork() ? link(path, file.path, { download: name })
        : button(file.path, () => attempt(() => save(path, name)), { className: "plain" });
      return make("li", {}, get, " ", make("small", { className: "quiet", textContent: size(file.bytes) }));
    });
    return make("li", { className: "card" },
      make("div", { className: "line" },
        make("h3", {}, `Snapshot ${one.snapshot}`, one.since_snapshot ? `: changes since ${one.since_snapshot}` : "", " ", make("small", { className: "quiet" }, when(one.created_at))), one.downloadable && whole),
      make("p", { textContent: [["annotations", "mask"], ["images", "image"], ["clicks", "event"]].filter(([key]) => one.counts[key]).map(([key, word]) => counted(one.counts[key], word)).join(", ") || "empty" }),
      make("p", { className: "quiet" }, make("code", { textContent: one.uri }), ` · ${size(one.num_bytes)}`),
      one.downloadable ? make("ul", { className: "files", "aria-label": `Files of snapshot ${one.snapshot}` }, ...files, rest > 0 && make("li", { className: "quiet", textContent: `and ${counted(rest, "more file")}` }))
        : make("p", { className: "quiet", textContent: "It lies outside of what this server hands out; fetch it from there." }));
  }));
}
