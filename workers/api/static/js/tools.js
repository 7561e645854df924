/** Changes of a mask without the model: what a tool adds and erases, as the log stores it. Knows no page and no server. */

import { covered } from "./contour.js";

/** @typedef {import("./bytes.js").Mask} Mask */
/** @typedef {{size: [number, number], counts: string}} Rle COCO's compressed runs, column by column. */
/** @typedef {{box: [number, number, number, number], added: Rle, erased: Rle}} Change In the box (x0, y0, x1, y1). */

const SIDES = /** @type {[number, number][]} */ ([[-1, 0], [1, 0], [0, -1], [0, 1]]);
/** A line of no length would not be drawn. */
const DOT_PX = 0.01;
const AROUND = /** @type {[number, number][]} */ ([...SIDES, [-1, -1], [1, -1], [-1, 1], [1, 1]]);

/**
 * Give the object what it encloses. Outside is what reaches the border of its box over sides of pixels.
 * @param {Mask} mask
 * @returns {Change | null} Null where there is no hole.
 */
export function fillHoles(mask) {
  const { labels, sizes } = components(mask, 0, SIDES);
  const isOpen = new Uint8Array(sizes.length);
  const { width, height } = mask;
  for (let x = 0; x < width; x++) isOpen[labels[x]] = isOpen[labels[(height - 1) * width + x]] = 1;
  for (let y = 0; y < height; y++) isOpen[labels[y * width]] = isOpen[labels[y * width + width - 1]] = 1;
  return change(mask, labels.map((label) => (label > 0 && !isOpen[label] ? 1 : 0)), null);
}

/**
 * Keep the part with the most pixels; pixels that meet at a corner are one part.
 * @param {Mask} mask
 * @returns {Change | null} Null where there is one part.
 */
export function keepLargest(mask) {
  const { labels, sizes } = components(mask, 1, AROUND);
  let largest = 1;
  for (let label = 2; label < sizes.length; label++) if (sizes[label] > sizes[largest]) largest = label;
  return change(mask, null, labels.map((label) => (label > 0 && label !== largest ? 1 : 0)));
}

/** Of a polygon; the log takes 5,000. */
const MOST_CORNERS = 5000;

/**
 * Make one mask into another.
 * @param {Mask} before May have no pixels. @param {Mask} after
 * @param {import("./contour.js").Point[][]} rings The outline that `after` was drawn from: the longest goes into the log.
 * @returns {(Change & {polygon: import("./contour.js").Point[]}) | null} Null where they are the same.
 */
export function reshape(before, after, rings) {
  const { old, now, ...box } = together(before, after);
  const part = (/** @type {Uint8Array} */ one, /** @type {Uint8Array} */ other) => one.map((value, index) => value & ~other[index] & 1);
  const changed = change({ ...box, pixels: now }, part(now, old), part(old, now));
  const longest = rings.reduce((so, ring) => (ring.length > so.length ? ring : so), []);
  return changed && { ...changed, polygon: longest.length > MOST_CORNERS ? [] : longest };
}

/**
 * @param {Mask} before May have no pixels. @param {Mask} after
 * @returns {Mask} The pixels that only one of them has.
 */
export function difference(before, after) {
  const { old, now, ...box } = together(before, after);
  return { ...box, pixels: now.map((value, index) => value ^ old[index]) };
}

/**
 * Two masks in the box that holds both.
 * @param {Mask} before @param {Mask} after
 */
function together(before, after) {
  const both = [before, after].filter((mask) => mask.pixels.length > 0);
  if (both.length === 0) return { x: 0, y: 0, width: 0, height: 0, old: new Uint8Array(0), now: new Uint8Array(0) };
  const [x, y] = [Math.min(...both.map((mask) => mask.x)), Math.min(...both.map((mask) => mask.y))];
  const width = Math.max(...both.map((mask) => mask.x + mask.width)) - x;
  const height = Math.max(...both.map((mask) => mask.y + mask.height)) - y;
  return { x, y, width, height, old: within(before, x, y, width, height), now: within(after, x, y, width, height) };
}

/**
 * @param {Mask} mask @param {number} x @param {number} y @param {number} width @param {number} height
 * @returns {Uint8Array} Its pixels in a larger box.
 */
function within(mask, x, y, width, height) {
  const pixels = new Uint8Array(width * height);
  for (let row = 0; row < mask.height; row++) {
    const from = mask.pixels.subarray(row * mask.width, (row + 1) * mask.width);
    pixels.set(from, (mask.y - y + row) * width + mask.x - x);
  }
  return pixels;
}

/**
 * What a round brush covers of an image along a line: the payload of a `brush` event.
 * @param {import("./view.js").Stroke} stroke @param {number} width Of the image. @param {number} height
 * @returns {Record<string, any> | null} Null where it covers no pixel of the image.
 */
export function paint({ points, radius, is_positive }, width, height) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const limit = (/** @type {number} */ value, /** @type {number} */ most) => Math.min(Math.max(value, 0), most);
  const x0 = limit(Math.floor(Math.min(...xs) - radius), width);
  const y0 = limit(Math.floor(Math.min(...ys) - radius), height);
  const [w, h] = [limit(Math.ceil(Math.max(...xs) + radius), width) - x0, limit(Math.ceil(Math.max(...ys) + radius), height) - y0];
  if (w < 1 || h < 1) return null;
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (new OffscreenCanvas(w, h).getContext("2d"));
  context.translate(-x0, -y0);
  drawStroke(context, points, radius);
  const pixels = covered(context, w, h);
  if (!pixels.includes(1)) return null;
  return { is_positive, box: [x0, y0, x0 + w, y0 + h], rle: encodeRle(pixels, w, h), polyline: points, radius };
}

/**
 * Draw a stroke in pixels of the image, as the context is set up.
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context
 * @param {[number, number][]} points At least one. @param {number} radius
 */
export function drawStroke(context, points, radius) {
  context.lineWidth = 2 * radius;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(points[0][0] + DOT_PX, points[0][1]);
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}

/**
 * @param {Mask} mask
 * @param {0 | 1} value Of the pixels that are looked at.
 * @param {[number, number][]} neighbours
 * @returns {{labels: Int32Array, sizes: number[]}} Number of each pixel's component, from 1 (0: another value); pixels of each.
 */
function components({ width, height, pixels }, value, neighbours) {
  const labels = new Int32Array(pixels.length);
  const stack = new Int32Array(pixels.length);
  const sizes = [0];
  for (let start = 0; start < pixels.length; start++) {
    if (pixels[start] !== value || labels[start] > 0) continue;
    const label = sizes.length;
    let [top, size] = [0, 0];
    labels[stack[top++] = start] = label;
    while (top > 0) {
      const at = stack[--top];
      const [x, y] = [at % width, Math.floor(at / width)];
      size++;
      for (const [dx, dy] of neighbours) {
        const next = at + dy * width + dx;
        const isInside = x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height;
        if (isInside && pixels[next] === value && labels[next] === 0) labels[stack[top++] = next] = label;
      }
    }
    sizes.push(size);
  }
  return { labels, sizes };
}

/**
 * @param {Mask} mask
 * @param {ArrayLike<number> | null} added
 * @param {ArrayLike<number> | null} erased
 * @returns {Change | null}
 */
function change({ x, y, width, height, pixels }, added, erased) {
  const none = new Uint8Array(pixels.length);
  const has = (/** @type {ArrayLike<number> | null} */ part) => Array.prototype.includes.call(part ?? none, 1);
  if (!has(added) && !has(erased)) return null;
  const encoded = (/** @type {ArrayLike<number> | null} */ part) => encodeRle(part ?? none, width, height);
  return { box: [x, y, x + width, y + height], added: encoded(added), erased: encoded(erased) };
}

/**
 * COCO's text of a mask: lengths of runs, zeros first, down the columns; from the fourth on less the one two before; each
 * in groups of five bits, the lowest first, as characters from "0".
 * @param {ArrayLike<number>} pixels Row by row. @param {number} width @param {number} height
 * @returns {Rle}
 */
export function encodeRle(pixels, width, height) {
  const runs = [0];
  let value = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (pixels[y * width + x] !== value) {
        runs.push(0);
        value = 1 - value;
      }
      runs[runs.length - 1]++;
    }
  }
  const counts = runs.map((run, index) => characters(index > 2 ? run - runs[index - 2] : run)).join("");
  return { size: [height, width], counts };
}

/** @param {number} value @returns {string} */
function characters(value) {
  let text = "";
  for (let more = true; more;) {
    const bits = value & 0x1f;
    value >>= 5;
    more = value !== (bits & 0x10 ? -1 : 0);
    text += String.fromCharCode(48 + (more ? bits | 0x20 : bits));
  }
  return text;
}
