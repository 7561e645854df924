/** Changes of a mask without the model: what a tool adds and erases, as the log stores it. Knows no page and no server. */

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
  const { data } = context.getImageData(0, 0, w, h);
  const pixels = Uint8Array.from({ length: w * h }, (_, index) => (data[4 * index + 3] > 127 ? 1 : 0));
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
  if (!Array.prototype.includes.call(added ?? erased ?? none, 1)) return null;
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
