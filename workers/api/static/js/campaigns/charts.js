/**
 * Plots as inline SVG: values over time, and bars. Each is a figure with a caption, a sentence for those who cannot see
 * it and its values as a table. Knows no campaign.
 */

import { make } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 480;
const HEIGHT = 200;
const EDGE = { left: 44, right: 12, top: 12, bottom: 26 };
const MAX_BARS = 12;
const STEPS_S = [300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000];

/** @typedef {(value: number) => string} Format */
/** @typedef {{at: number, value: number}} Point At: seconds since 1970, where its period begins. */
/** @typedef {{name: string, points: Point[]}} Series */
/** @typedef {{label: string, value: number | null, low?: number, high?: number}} Bar Low and high: its interval. */

/** @param {string} tag @param {Record<string, string | number>} attributes @param {(Node | string)[]} children */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** @param {string} text @param {number} longest */
const shorten = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);

/** @param {number} low @param {number} high @param {number} [wanted] @returns {number[]} Round values around a range. */
export function ticksOf(low, high, wanted = 4) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) ?? rough;
  const ticks = [];
  for (let index = Math.floor(low / step + 1e-9); ; index++) {
    ticks.push(Number((index * step).toPrecision(12)));
    if (index * step >= high - 1e-9 * span) return ticks;
  }
}

/** @param {number} seconds @param {number} stepS @param {boolean} days Whether the plot spans several. */
function timeText(seconds, stepS, days) {
  const date = new Date(seconds * 1000);
  /** @type {Intl.DateTimeFormatOptions} */
  const day = { day: "numeric", month: "short", ...(stepS > 5_000_000 ? { year: "2-digit" } : {}) };
  /** @type {Intl.DateTimeFormatOptions} */
  const hour = { hour: "2-digit", minute: "2-digit" };
  return date.toLocaleString("en-GB", stepS >= 86_400 ? day : days ? { ...day, ...hour } : hour);
}

/** @param {number} from @param {number} to @returns {{at: number, text: string}[]} */
function timeTicks(from, to) {
  const days = new Date(from * 1000).toDateString() !== new Date(to * 1000).toDateString();
  const most = days ? 4 : 6;
  const step = STEPS_S.find((size) => (to - from) / size <= most) ?? (to - from) / most;
  const zone = new Date(from * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) {
    ticks.push({ at, text: timeText(at, step, days) });
  }
  return ticks;
}

/** @param {number[]} ticks @param {(value: number) => number} y @param {Format} format */
function horizontals(ticks, y, format) {
  return ticks.flatMap((tick) => [
    svg("line", { class: "rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(tick), y2: y(tick) }),
    svg("text", { class: "tick", x: EDGE.left - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
  ]);
}

/**
 * @param {string} title
 * @param {string} said The plot in words.
 * @param {SVGElement | null} plot Null: there is nothing to plot.
 * @param {string[]} heads
 * @param {string[][]} rows
 * @param {string[]} [names] Of several series.
 * @returns {HTMLElement}
 */
function figure(title, said, plot, heads, rows, names = []) {
  if (!plot) {
    return make("figure", { className: "plot" }, make("figcaption", { textContent: title }), make("p", { className: "quiet", textContent: "Nothing to show yet." }));
  }
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", said);
  const legend = names.length > 1 && make("ul", { className: "legend" }, ...names.map((name, index) =>
    make("li", {}, make("span", { className: `key series-${index}` }), name)));
  const cells = rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
    make(index === 0 ? "th" : "td", index === 0 ? { scope: "row", textContent: cell } : { textContent: cell }))));
  return make("figure", { className: "plot" },
    make("figcaption", { textContent: title }), legend, plot,
    make("details", {}, make("summary", { textContent: "Values", "aria-label": `Values of: ${title}` }),
      make("div", { className: "scroll" }, make("table", {},
        make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", textContent: head })))),
        make("tbody", {}, ...cells)))));
}

/**
 * Values over time.
 * @param {{title: string, series: Series[], periodS: number, format: Format, bars?: boolean}} what Bars: for counts of a
 *   period, which add up; else points that are joined where their periods follow each other.
 * @returns {HTMLElement}
 */
export function overTime({ title, series, periodS, format, bars = false }) {
  const all = series.flatMap((one) => one.points);
  if (all.length === 0) return figure(title, "", null, [], []);
  const from = Math.min(...all.map((point) => point.at));
  const to = Math.max(...all.map((point) => point.at)) + periodS;
  const ticks = ticksOf(0, Math.max(...all.map((point) => point.value), 1e-9));
  const top = ticks[ticks.length - 1];
  const x = (/** @type {number} */ at) => EDGE.left + ((at - from) / (to - from)) * (WIDTH - EDGE.left - EDGE.right);
  const y = (/** @type {number} */ value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart" }, ...horizontals(ticks, y, format));
  for (const { at, text } of timeTicks(from, to)) {
    const anchor = x(at) > WIDTH - 40 ? "end" : x(at) < EDGE.left + 30 ? "start" : "middle";
    plot.append(svg("line", { class: "rule", x1: x(at), x2: x(at), y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom + 4 }),
      svg("text", { class: "tick", x: x(at), y: HEIGHT - 8, "text-anchor": anchor }, text));
  }
  const name = (/** @type {number} */ at) => timeText(at, Math.min(periodS, 3600), true);
  series.forEach(({ points }, index) => plot.append(...(bars ? columns(points) : line(points, index))));

  /** @param {Point[]} points */
  function columns(points) {
    const width = Math.min(Math.max(x(from + periodS) - x(from) - 2, 1.5), 48);
    return points.map(({ at, value }) => svg("rect", {
      class: "bar series-0", x: (x(at) + x(at + periodS) - width) / 2, y: y(value), width, height: Math.max(y(0) - y(value), 0), rx: 1.5,
    }, svg("title", {}, `${name(at)}: ${format(value)}`)));
  }

  /** @param {Point[]} points @param {number} index */
  function line(points, index) {
    const middle = (/** @type {Point} */ point) => `${x(point.at + periodS / 2).toFixed(1)} ${y(point.value).toFixed(1)}`;
    const path = points.map((point, place) => `${place > 0 && point.at - points[place - 1].at <= periodS * 1.5 ? "L" : "M"}${middle(point)}`).join("");
    return [svg("path", { class: `line series-${index}`, d: path }), ...points.map((point) => svg("circle", {
      class: `dot series-${index}`, cx: x(point.at + periodS / 2), cy: y(point.value), r: points.length > 24 ? 2 : 3,
    }, svg("title", {}, `${name(point.at)}: ${format(point.value)}`)))];
  }

  const said = series.map(({ name: of, points }) => {
    const values = points.map((point) => point.value);
    const ends = values.length > 1 ? `from ${format(values[0])} to ${format(values[values.length - 1])}, ` : "";
    return `${of}: ${ends}lowest ${format(Math.min(...values))}, highest ${format(Math.max(...values))}`;
  });
  const times = [...new Set(all.map((point) => point.at))].sort((a, b) => a - b);
  const rows = times.map((at) => [name(at), ...series.map(({ points }) => {
    const found = points.find((point) => point.at === at);
    return found ? format(found.value) : "–";
  })]);
  return figure(title, `${title}, ${times.length} periods. ${said.join("; ")}.`, plot, ["From", ...series.map((one) => one.name)], rows,
    series.map((one) => one.name));
}

/**
 * Bars that lie, one below the other, each with its name; intervals are drawn as whiskers.
 * @param {{title: string, bars: Bar[], format: Format, name: string}} what Name: of the values.
 * @returns {HTMLElement}
 */
export function lyingBars({ title, bars, format, name }) {
  const known = /** @type {{label: string, value: number, low?: number, high?: number}[]} */ (bars.filter((bar) => bar.value !== null));
  if (known.length === 0) return figure(title, "", null, [], []);
  const shown = known.slice(0, MAX_BARS);
  const [left, row] = [132, 24];
  const low = Math.min(0, ...shown.map((bar) => bar.low ?? bar.value));
  const high = Math.max(0, ...shown.map((bar) => bar.high ?? bar.value));
  const ticks = ticksOf(low, high || (low < 0 ? 0 : 1), 4);
  const [first, last] = [ticks[0], ticks[ticks.length - 1]];
  const x = (/** @type {number} */ value) => left + ((value - first) / (last - first)) * (WIDTH - left - 46);
  const height = shown.length * row + 24;
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "chart" });
  for (const tick of ticks) {
    plot.append(svg("line", { class: tick === 0 ? "rule zero" : "rule", x1: x(tick), x2: x(tick), y1: 0, y2: height - 20 }),
      svg("text", { class: "tick", x: x(tick), y: height - 6, "text-anchor": "middle" }, format(tick)));
  }
  shown.forEach((bar, index) => {
    const middle = index * row + row / 2;
    plot.append(
      svg("text", { class: "name", x: left - 8, y: middle + 4, "text-anchor": "end" }, svg("title", {}, bar.label), shorten(bar.label, 19)),
      svg("rect", { class: "bar series-0", x: Math.min(x(0), x(bar.value)), y: middle - 7, width: Math.max(Math.abs(x(bar.value) - x(0)), 1), height: 14, rx: 2 }));
    if (bar.low !== undefined && bar.high !== undefined) {
      plot.append(svg("path", { class: "whisker", d: `M${x(bar.low)} ${middle - 4}v8m0 -4H${x(bar.high)}m0 -4v8` }));
    } else {
      plot.append(svg("text", { class: "value", x: x(Math.max(bar.value, 0)) + 5, y: middle + 4 }, format(bar.value)));
    }
  });
  const interval = (/** @type {Bar} */ bar) => (bar.low === undefined || bar.high === undefined ? "" : ` (${format(bar.low)} to ${format(bar.high)})`);
  const said = shown.map((bar) => `${bar.label} ${format(bar.value)}${interval(bar)}`).join(", ");
  return figure(known.length > MAX_BARS ? `${title}, the first ${MAX_BARS} of ${known.length}` : title, `${title}: ${said}.`, plot, ["", name],
    known.map((bar) => [bar.label, `${format(bar.value)}${interval(bar)}`]));
}

/**
 * A histogram: bins side by side, whatever their width.
 * @param {{title: string, bins: {label: string, count: number}[], name: string, said: string}} what
 * @returns {HTMLElement}
 */
export function histogram({ title, bins, name, said }) {
  const [begin, end] = [bins.findIndex((bin) => bin.count > 0), bins.findLastIndex((bin) => bin.count > 0)];
  if (begin < 0) return figure(title, "", null, [], []);
  const shown = bins.slice(Math.max(begin - 1, 0), end + 2);
  const format = (/** @type {number} */ value) => value.toLocaleString("en");
  const ticks = ticksOf(0, Math.max(...shown.map((bin) => bin.count), 4));
  const top = ticks[ticks.length - 1];
  const width = (WIDTH - EDGE.left - EDGE.right) / shown.length;
  const y = (/** @type {number} */ value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart" }, ...horizontals(ticks, y, format));
  const every = Math.ceil(shown.length / 7);
  shown.forEach((bin, index) => {
    const x = EDGE.left + index * width;
    plot.append(svg("rect", { class: "bar series-0", x: x + 1, y: y(bin.count), width: Math.max(width - 2, 1), height: Math.max(y(0) - y(bin.count), 0), rx: 1.5 },
      svg("title", {}, `${bin.label}: ${format(bin.count)}`)));
    if (index % every === 0) plot.append(svg("text", { class: "tick", x: x + width / 2, y: HEIGHT - 8, "text-anchor": "middle" }, bin.label));
  });
  return figure(title, `${title}. ${said}`, plot, ["Bin", name], shown.map((bin) => [bin.label, format(bin.count)]));
}

/**
 * Shares of a whole as one bar with its legend.
 * @param {string} title
 * @param {{name: string, count: number}[]} parts
 * @returns {HTMLElement}
 */
export function shares(title, parts) {
  const whole = parts.reduce((sum, part) => sum + part.count, 0);
  const bar = svg("svg", { viewBox: "0 0 1000 12", preserveAspectRatio: "none", class: "shares", role: "img" });
  bar.setAttribute("aria-label", `${title}: ${parts.map((part) => `${part.count} ${part.name}`).join(", ")}.`);
  let x = 0;
  for (const part of parts) {
    const width = whole ? (part.count / whole) * 1000 : 0;
    if (width > 0) bar.append(svg("rect", { class: `part-${part.name}`, x, y: 0, width, height: 12 }, svg("title", {}, `${part.name}: ${part.count}`)));
    x += width;
  }
  return make("div", { className: "whole" }, bar, make("ul", { className: "legend", "aria-hidden": "true" }, ...parts.map((part) =>
    make("li", {}, make("span", { className: `key part-${part.name}` }), `${part.name} ${part.count.toLocaleString("en")}`))));
}
