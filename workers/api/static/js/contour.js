/** Masks and outlines: from pixels to rings of corners, to fewer corners, and back. Knows no page and no server. */

/** @typedef {import("./bytes.js").Mask} Mask */
/** @typedef {[number, number]} Point (x, y) in pixels of the image; pixel (0, 0) reaches from 0 to 1. */

const STEPS = /** @type {Point[]} */ ([[1, 0], [0, 1], [-1, 0], [0, -1]]);

/**
 * The borders of a mask between its pixels and the others, holes included.
 * @param {Mask} mask
 * @returns {Point[][]} Closed rings of corners, the last joined to the first. Filled by the even-odd rule they give the mask.
 */
export function trace({ x: left, y: top, width, height, pixels }) {
  const across = width + 1;
  const exits = new Uint8Array(across * (height + 1));
  const at = (/** @type {number} */ x, /** @type {number} */ y) =>
    x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!pixels[y * width + x]) continue;
      if (!at(x, y - 1)) exits[y * across + x] |= 1;
      if (!at(x + 1, y)) exits[y * across + x + 1] |= 2;
      if (!at(x, y + 1)) exits[(y + 1) * across + x + 1] |= 4;
      if (!at(x - 1, y)) exits[(y + 1) * across + x] |= 8;
    }
  }
  const rings = [];
  for (let corner = 0; corner < exits.length; corner++) {
    while (exits[corner]) rings.push(follow(exits, across, corner, left, top));
  }
  return rings;
}

/**
 * One ring, taken out of what is left of the borders.
 * @param {Uint8Array} exits Per corner, a bit for each direction that a border leaves it in.
 * @param {number} across Corners in a row. @param {number} start @param {number} left @param {number} top
 * @returns {Point[]}
 */
function follow(exits, across, start, left, top) {
  const ring = /** @type {Point[]} */ ([]);
  let [corner, before] = [start, -1];
  do {
    const turns = before < 0 ? [0, 1, 2, 3] : [before + 1, before, before + 3];
    const way = /** @type {number} */ (turns.find((turn) => exits[corner] & (1 << turn % 4))) % 4;
    if (way !== before) ring.push([left + (corner % across), top + Math.floor(corner / across)]);
    exits[corner] &= ~(1 << way);
    corner += STEPS[way][0] + STEPS[way][1] * across;
    before = way;
  } while (corner !== start);
  return ring;
}

/**
 * A ring with fewer corners (Douglas and Peucker, 1973): none that is left out lies farther from the new outline.
 * @param {Point[]} ring
 * @param {number} tolerance In pixels of the image; 0 keeps every corner.
 * @returns {Point[]}
 */
export function simplify(ring, tolerance) {
  if (tolerance <= 0 || ring.length < 4) return ring;
  const far = farthest(ring, 0, ring.length, ring[0], ring[0]).index;
  const closed = [...ring, ring[0]];
  const kept = new Uint8Array(closed.length);
  kept[0] = kept[far] = 1;
  const spans = /** @type {[number, number][]} */ ([[0, far], [far, ring.length]]);
  for (let span = spans.pop(); span; span = spans.pop()) {
    const [from, to] = span;
    const { index, distance } = farthest(closed, from + 1, to, closed[from], closed[to]);
    if (distance <= tolerance) continue;
    kept[index] = 1;
    spans.push([from, index], [index, to]);
  }
  return ring.filter((_point, index) => kept[index]);
}

/**
 * @param {Point[]} points @param {number} from @param {number} to Not included. @param {Point} a @param {Point} b
 * @returns {{index: number, distance: number}} The point that lies farthest from the line between a and b.
 */
function farthest(points, from, to, a, b) {
  let [index, distance] = [from, -1];
  for (let i = from; i < to; i++) {
    const away = distanceTo(points[i], a, b);
    if (away > distance) [index, distance] = [i, away];
  }
  return { index, distance };
}

/** @param {Point} point @param {Point} a @param {Point} b @returns {number} Its distance to the line from a to b. */
export function distanceTo([x, y], [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const along = dx || dy ? Math.min(Math.max(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0), 1) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}

/**
 * The pixels that rings cover by at least half, by the even-odd rule.
 * @param {Point[][]} rings
 * @param {number} width Of the image. @param {number} height
 * @returns {Mask} In the rings' box, cut to the image; without pixels where they cover none.
 */
export function fill(rings, width, height) {
  const points = rings.flat();
  const inside = (/** @type {number} */ value, /** @type {number} */ limit) => Math.min(Math.max(value, 0), limit);
  const bound = (/** @type {0 | 1} */ axis, /** @type {number} */ start, /** @type {(a: number, b: number) => number} */ pick) =>
    points.reduce((so, point) => pick(so, point[axis]), start);
  const [x, y] = [inside(Math.floor(bound(0, Infinity, Math.min)), width), inside(Math.floor(bound(1, Infinity, Math.min)), height)];
  const [x1, y1] = [inside(Math.ceil(bound(0, -Infinity, Math.max)), width), inside(Math.ceil(bound(1, -Infinity, Math.max)), height)];
  const [w, h] = [x1 - x, y1 - y];
  if (!(w > 0 && h > 0)) return { x: 0, y: 0, width: 0, height: 0, pixels: new Uint8Array(0) };
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (new OffscreenCanvas(w, h).getContext("2d"));
  context.translate(-x, -y);
  context.beginPath();
  for (const ring of rings) {
    ring.forEach(([px, py], index) => (index === 0 ? context.moveTo(px, py) : context.lineTo(px, py)));
    context.closePath();
  }
  context.fill("evenodd");
  return { x, y, width: w, height: h, pixels: covered(context, w, h) };
}

/**
 * @param {OffscreenCanvasRenderingContext2D} context @param {number} width @param {number} height
 * @returns {Uint8Array} 1 where at least half of a pixel is painted.
 */
export function covered(context, width, height) {
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(width * height);
  for (let index = 0; index < pixels.length; index++) pixels[index] = data[4 * index + 3] > 127 ? 1 : 0;
  return pixels;
}
