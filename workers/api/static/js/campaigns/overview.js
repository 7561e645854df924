/** A campaign's figures and plots. */

import { histogram, lyingBars, overTime, shares } from "./charts.js";
import { make } from "../dom.js";
import { counted, duration, number } from "./dom.js";

/** @param {string} label @param {string} value @param {string} [beside] */
const tile = (label, value, beside = "") => make("div", { className: "figure" },
  make("dt", { textContent: label }), make("dd", {}, make("strong", { textContent: value }), make("span", { className: "quiet", textContent: beside })));

/** @param {any[]} points @param {string} field @param {string} name @returns {import("./charts.js").Series} */
const seriesOf = (points, field, name) => ({
  name, points: points.filter((point) => point[field] !== null).map((point) => ({ at: Date.parse(point.begin) / 1000, value: point[field] })),
});

/** @param {number} seconds Of a period. */
function periodName(seconds) {
  if (seconds < 3600) return `${seconds / 60} minutes`;
  if (seconds < 86_400) return seconds === 3600 ? "hour" : `${seconds / 3600} hours`;
  return seconds === 86_400 ? "day" : `${seconds / 86_400} days`;
}

/** @param {any} status @param {any} statistics @returns {HTMLElement} */
export function overview(status, statistics) {
  const { total, latency, period_s: periodS, over_time: work } = statistics;
  const done = status.tasks.done + status.tasks.submitted;
  const hours = work.reduce((/** @type {number} */ sum, /** @type {any} */ point) => sum + (point.masks_per_hour ? point.masks / point.masks_per_hour : 0), 0);
  const states = ["done", "submitted", "leased", "skipped", "new"].map((name) => ({ name, count: status.tasks[name] }));
  const figures = make("dl", { className: "figures" },
    tile("Images", number(status.images), `${number(status.holdout_images)} held out`),
    tile("Labeled", status.images ? `${number((100 * done) / status.images)} %` : "–", `${number(done)} of ${counted(status.images, "image")}`),
    tile("Masks", number(status.masks), status.imported ? `current, and ${number(status.imported)} imported` : "current"),
    tile("Masks per hour", number(hours ? total.masks / hours : null), "and person"),
    tile("Clicks per mask", number(total.clicks_per_mask, 1), `${counted(status.clicks, "click")} in all`),
    tile("Time per mask", duration(total.seconds_per_mask), "open to accept"),
    tile("Click latency", latency.p50_ms === null ? "–" : `${number(latency.p50_ms)} ms`, latency.p95_ms === null ? "" : `p95 ${number(latency.p95_ms)} ms`),
    tile("Encoded", status.images ? `${number((100 * status.embeddings) / status.images)} %` : "–", `${number(status.embeddings)} of ${number(status.images)}`));
  const figure = (/** @type {number} */ value) => number(value, value < 10 && !Number.isInteger(value) ? 1 : 0);
  const seconds = (/** @type {number} */ value) => `${figure(value)} s`;
  const ms = (/** @type {number} */ value) => `${number(value)} ms`;
  const adapterName = (/** @type {any} */ one) => (one.adapter === null ? "bare model" : `adapter ${one.adapter}`);
  const categoryName = (/** @type {any} */ one) => one.name ?? (one.number === null ? "no category" : `category ${one.number}`);
  const bars = (/** @type {any[]} */ groups, /** @type {(one: any) => string} */ name, /** @type {string} */ field) => groups.map((one) => ({ label: name(one), value: one[field] }));
  const plots = [
    overTime({ title: `Masks accepted per ${periodName(periodS)}`, periodS, bars: true, format: figure, series: [seriesOf(work, "masks", "Masks")] }),
    overTime({ title: "Masks per hour and person", periodS, format: figure, series: [seriesOf(work, "masks_per_hour", "Masks per hour")] }),
    overTime({ title: "Clicks per mask", periodS, format: figure, series: [seriesOf(work, "clicks_per_mask", "Clicks per mask")] }),
    overTime({ title: "Seconds per mask", periodS, format: seconds, series: [seriesOf(work, "seconds_per_mask", "Seconds per mask")] }),
    lyingBars({ title: "Clicks per mask by adapter", name: "Clicks per mask", format: figure, bars: bars(statistics.by_adapter, adapterName, "clicks_per_mask") }),
    lyingBars({ title: "Seconds per mask by adapter", name: "Seconds per mask", format: seconds, bars: bars(statistics.by_adapter, adapterName, "seconds_per_mask") }),
    lyingBars({ title: "Clicks per mask by category", name: "Clicks per mask", format: figure, bars: bars(statistics.by_category, categoryName, "clicks_per_mask") }),
    lyingBars({ title: "Seconds per mask by category", name: "Seconds per mask", format: seconds, bars: bars(statistics.by_category, categoryName, "seconds_per_mask") }),
    histogram({
      title: "Click latency in the refiners, ms", name: "Clicks",
      said: latency.p50_ms === null ? "" : `Half of ${counted(latency.clicks, "click")} took less than ${ms(latency.p50_ms)}, 95 % less than ${ms(latency.p95_ms)}.`,
      bins: latency.histogram.map((/** @type {any} */ bin) => ({ from: String(bin.from_ms), label: bin.to_ms === null ? `≥${bin.from_ms}` : `${bin.from_ms}–${bin.to_ms}`, count: bin.clicks })),
    }),
    overTime({ title: "Click latency over time", periodS, format: ms, series: [seriesOf(latency.over_time, "p50_ms", "half of the clicks"), seriesOf(latency.over_time, "p95_ms", "95 %")] }),
    lyingBars({ title: "Masks by annotator", name: "Masks", format: figure, bars: statistics.by_annotator.map((/** @type {any} */ one) => ({ label: one.name, value: one.masks })) }),
    lyingBars({ title: "Seconds per mask by annotator", name: "Seconds per mask", format: seconds, bars: bars(statistics.by_annotator, (one) => one.name, "seconds_per_mask") }),
  ];
  const bad = status.quarantined.length === 0 ? null : make("details", { className: "bad-images" },
    make("summary", { textContent: `${counted(status.quarantined.length, "file")} could not be used` }),
    make("ul", {}, ...status.quarantined.slice(0, 200).map((/** @type {any} */ one) => make("li", {}, make("code", { textContent: one.uri }), ` ${one.reason}`))));
  return make("div", { className: "overview" }, figures,
    make("section", { "aria-label": "Images by state" }, make("h3", { textContent: "Images by state" }), shares("Images by state", states)), bad,
    make("div", { className: "plots" }, ...plots),
    make("p", { className: "quiet small", textContent: `Times are of this browser's zone. Masks that took more than 15 minutes do not count for seconds. Hours of work are counted in slots of 5 minutes with at least one mask. A point is of ${periodName(periodS)}.` }));
}
