/**
 * Plots as inline SVG: values over time, and bars. Each is a figure with a caption, a sentence for those who cannot see
 * it and its values as a table. Knows no campaign.
 */

import { make } from "../dom.js";

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 170;
const EDGE = { right: 8, top: 10, bottom: 24 };
/** Pixels that a character of a label takes, at most. */
const CHARACTER = 6.6;
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

/** @param {number} low @param {number} high @param {number} [wanted] @returns {number[]} Round values around a range, of one digit each step: labels have no room for more. */
export function ticksOf(low, high, wanted = 4) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) ?? rough;
  const ticks = [];
  for (let index = Math.floor(low / step + 1e-9); ; index++) {
    ticks.push(Number((index * step).toPrecision(12)));
    if (index * step >= high - 1e-9 * span) return ticks;
  }
}

/** @param {number} seconds @param {"hour" | "day" | "month" | "all"} exactness @returns {string} In the reader's zone. */
function timeText(seconds, exactness) {
  /** @type {Intl.DateTimeFormatOptions} */
  const hour = { hour: "2-digit", minute: "2-digit" };
  /** @type {Intl.DateTimeFormatOptions} */
  const day = { day: "numeric", month: "short" };
  /** @type {Record<typeof exactness, Intl.DateTimeFormatOptions>} */
  const options = { hour, day, month: { month: "short", year: "2-digit" }, all: { ...day, ...hour } };
  return new Date(seconds * 1000).toLocaleString("en-GB", options[exactness]);
}

/** @param {number} from @param {number} to @param {number} width Pixels. @returns {{at: number, text: string}[]} */
function timeTicks(from, to, width) {
  const step = STEPS_S.find((seconds) => (to - from) / seconds <= width / 48) ?? (to - from) / 4;
  const zone = new Date(from * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) {
    const isMidnight = (at - zone) % 86_400 === 0;
    ticks.push({ at, text: timeText(at, step > 5_000_000 ? "month" : step >= 86_400 || isMidnight ? "day" : "hour") });
  }
  return ticks;
}

/** @param {number[]} ticks @param {Format} format @returns {number} Pixels left of the plot for their labels. */
const roomFor = (ticks, format) => Math.max(...ticks.map((tick) => format(tick).length)) * CHARACTER + 10;

/** @param {number[]} ticks @param {(value: number) => number} y @param {Format} format @param {number} width @param {number} left */
function horizontals(ticks, y, format, width, left) {
  return ticks.flatMap((tick) => [
    svg("line", { class: "rule", x1: left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) }),
    svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
  ]);
}

/**
 * @param {string} title
 * @param {string} said The plot in words.
 * @param {((width: number) => SVGElement) | null} draw At a width in pixels; null: there is nothing to plot.
 * @param {number} height Pixels, kept free until it is drawn.
 * @param {string[]} heads
 * @param {string[][]} rows
 * @param {string[]} [names] Of several series.
 * @returns {HTMLElement}
 */
function figure(title, said, draw, height, heads, rows, names = []) {
  const caption = make("figcaption", { textContent: title });
  if (!draw) return make("figure", { className: "plot" }, caption, make("p", { className: "quiet", textContent: "Nothing to show yet." }));
  const area = make("div", {});
  area.style.minHeight = `${height}px`;
  let drawn = 0;
  new ResizeObserver(([entry]) => { // redrawn rather than stretched: text keeps its size
    const width = Math.round(entry.contentRect.width);
    if (width < 50 || width === drawn) return;
    drawn = width;
    const plot = draw(width);
    plot.setAttribute("class", "chart");
    plot.setAttribute("width", String(width));
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", said);
    area.replaceChildren(plot);
  }).observe(area);
  const legend = names.length > 1 && make("ul", { className: "legend" }, ...names.map((name, index) =>
    make("li", {}, make("span", { className: `key series-${index}` }), name)));
  const cells = rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
    make(index === 0 ? "th" : "td", index === 0 ? { scope: "row", textContent: cell } : { textContent: cell }))));
  return make("figure", { className: "plot" }, caption, legend, area,
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
  if (all.length === 0) return figure(title, "", null, 0, [], []);
  const from = Math.min(...all.map((point) => point.at));
  const to = Math.max(...all.map((point) => point.at)) + periodS;
  const ticks = ticksOf(0, Math.max(...all.map((point) => point.value), 1e-9));
  const top = ticks[ticks.length - 1];
  const y = (/** @type {number} */ value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  const left = roomFor(ticks, format);
  const name = (/** @type {number} */ at) => timeText(at, periodS >= 86_400 ? "day" : "all");

  /** @param {number} width */
  function draw(width) {
    const x = (/** @type {number} */ at) => left + ((at - from) / (to - from)) * (width - left - EDGE.right);
    const plot = svg("svg", { height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` }, ...horizontals(ticks, y, format, width, left));
    for (const { at, text } of timeTicks(from, to, width - left)) {
      const anchor = x(at) > width - 24 ? "end" : "middle";
      plot.append(svg("line", { class: "rule", x1: x(at), x2: x(at), y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom + 4 }),
        svg("text", { class: "tick", x: x(at), y: HEIGHT - 7, "text-anchor": anchor }, text));
    }
    series.forEach(({ points }, index) => plot.append(...(bars ? columns(points, x) : line(points, x, index))));
    return plot;
  }

  /** @param {Point[]} points @param {(at: number) => number} x */
  function columns(points, x) {
    const width = Math.min(Math.max(x(from + periodS) - x(from) - 1.5, 1.5), 40);
    return points.map(({ at, value }) => svg("rect", {
      class: "bar series-0", x: (x(at) + x(at + periodS) - width) / 2, y: y(value), width, height: Math.max(y(0) - y(value), 0), rx: 1.5,
    }, svg("title", {}, `${name(at)}: ${format(value)}`)));
  }

  /** @param {Point[]} points @param {(at: number) => number} x @param {number} index */
  function line(points, x, index) {
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
  return figure(title, `${title}, ${times.length} periods. ${said.join("; ")}.`, draw, HEIGHT, ["From", ...series.map((one) => one.name)], rows,
    series.map((one) => one.name));
}

/**
 * Bars that lie, one below the other, each with its name; intervals are drawn as whiskers.
 * @param {{title: string, bars: Bar[], format: Format, name: string}} what Name: of the values.
 * @returns {HTMLElement}
 */
export function lyingBars({ title, bars, format, name }) {
  const known = /** @type {{label: string, value: number, low?: number, high?: number}[]} */ (bars.filter((bar) => bar.value !== null));
  if (known.length === 0) return figure(title, "", null, 0, [], []);
  const shown = known.slice(0, MAX_BARS);
  const row = 24;
  const low = Math.min(0, ...shown.map((bar) => bar.low ?? bar.value));
  const high = Math.max(0, ...shown.map((bar) => bar.high ?? bar.value));
  const ticks = ticksOf(low, high || (low < 0 ? 0 : 1), 4);
  const [first, last] = [ticks[0], ticks[ticks.length - 1]];
  const height = shown.length * row + 24;

  /** @param {number} width */
  function draw(width) {
    const left = Math.min(150, width * 0.36);
    const x = (/** @type {number} */ value) => left + ((value - first) / (last - first)) * (width - left - 44);
    const plot = svg("svg", { height, viewBox: `0 0 ${width} ${height}` });
    const every = Math.ceil((ticks.length * 34) / (width - left - 44));
    ticks.forEach((tick, index) => {
      plot.append(svg("line", { class: tick === 0 ? "rule zero" : "rule", x1: x(tick), x2: x(tick), y1: 0, y2: height - 20 }));
      if (index % every === 0) plot.append(svg("text", { class: "tick", x: x(tick), y: height - 6, "text-anchor": "middle" }, format(tick)));
    });
    shown.forEach((bar, index) => plot.append(...drawBar(bar, index * row + row / 2, left, x)));
    return plot;
  }

  /** @param {typeof shown[0]} bar @param {number} middle @param {number} left @param {(value: number) => number} x */
  function drawBar(bar, middle, left, x) {
    const isInterval = bar.low !== undefined && bar.high !== undefined;
    return [
      svg("text", { class: "name", x: left - 8, y: middle + 4, "text-anchor": "end" }, svg("title", {}, bar.label), shorten(bar.label, Math.floor((left - 8) / CHARACTER))),
      svg("rect", { class: "bar series-0", x: Math.min(x(0), x(bar.value)), y: middle - 7, width: Math.max(Math.abs(x(bar.value) - x(0)), 1), height: 14, rx: 2 }),
      isInterval ? svg("path", { class: "whisker", d: `M${x(bar.low ?? 0)} ${middle - 4}v8m0 -4H${x(bar.high ?? 0)}m0 -4v8` })
        : svg("text", { class: "value", x: x(Math.max(bar.value, 0)) + 5, y: middle + 4 }, format(bar.value)),
    ];
  }

  const interval = (/** @type {Bar} */ bar) => (bar.low === undefined || bar.high === undefined ? "" : ` (${format(bar.low)} to ${format(bar.high)})`);
  const said = shown.map((bar) => `${bar.label} ${format(bar.value)}${interval(bar)}`).join(", ");
  return figure(known.length > MAX_BARS ? `${title}, the first ${MAX_BARS} of ${known.length}` : title, `${title}: ${said}.`, draw, height, ["", name],
    known.map((bar) => [bar.label, `${format(bar.value)}${interval(bar)}`]));
}

/**
 * A histogram: bins side by side, whatever their width.
 * @param {{title: string, bins: {label: string, from: string, count: number}[], name: string, said: string}} what
 *   From: of a bin, written where it begins.
 * @returns {HTMLElement}
 */
export function histogram({ title, bins, name, said }) {
  const [begin, end] = [bins.findIndex((bin) => bin.count > 0), bins.findLastIndex((bin) => bin.count > 0)];
  if (begin < 0) return figure(title, "", null, 0, [], []);
  const shown = bins.slice(Math.max(begin - 1, 0), end + 2);
  const format = (/** @type {number} */ value) => value.toLocaleString("en");
  const ticks = ticksOf(0, Math.max(...shown.map((bin) => bin.count), 4));
  const top = ticks[ticks.length - 1];
  const y = (/** @type {number} */ value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);

  const left = roomFor(ticks, format);

  /** @param {number} full */
  function draw(full) {
    const width = (full - left - EDGE.right) / shown.length;
    const plot = svg("svg", { height: HEIGHT, viewBox: `0 0 ${full} ${HEIGHT}` }, ...horizontals(ticks, y, format, full, left));
    const every = Math.ceil(34 / width);
    shown.forEach((bin, index) => {
      const x = left + index * width;
      plot.append(svg("rect", { class: "bar series-0", x: x + 1, y: y(bin.count), width: Math.max(width - 2, 1), height: Math.max(y(0) - y(bin.count), 0), rx: 1.5 },
        svg("title", {}, `${bin.label}: ${format(bin.count)}`)));
      if (index % every === 0) plot.append(svg("text", { class: "tick", x, y: HEIGHT - 7, "text-anchor": "middle" }, bin.from));
    });
    return plot;
  }

  return figure(title, `${title}. ${said}`, draw, HEIGHT, ["Bin", name], shown.map((/** @type {{label: string, count: number}} */ bin) => [bin.label, format(bin.count)]));
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
  return make("div", { className: "whole" }, bar, make("ul", { className: "legend", "aria-hidden": "true" }, ...parts.filter((part) => part.count > 0).map((part) =>
    make("li", {}, make("span", { className: `key part-${part.name}` }), `${part.name} ${part.count.toLocaleString("en")}`))));
}
