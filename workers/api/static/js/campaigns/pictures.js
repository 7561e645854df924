/** Small pictures of images with their masks over them, drawn on canvases. Few are fetched at a time. */

import { getBlob } from "../api.js";
import { unpack } from "../bytes.js";
import { colourOf, tint } from "../overlay.js";

/** @typedef {{bitmap: ImageBitmap, masks: {id: string, rgb: number[], mask: import("../bytes.js").Mask}[], width: number, height: number}} Picture */

const AT_ONCE = 4;
let running = 0;
/** @type {(() => void)[]} */
const waiting = [];

/** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
async function inTurn(work) {
  if (running >= AT_ONCE) await new Promise((go) => waiting.push(() => go(undefined)));
  running++;
  try {
    return await work();
  } finally {
    running--;
    waiting.shift()?.();
  }
}

/**
 * @param {any} image As the browse routes give it.
 * @param {number} size The previews' longest side.
 * @param {{number: number}[]} categories Of the campaign, in its order.
 * @param {AbortSignal} signal
 * @returns {Promise<Picture>}
 */
export async function loadPicture(image, size, categories, signal) {
  const bitmap = await inTurn(async () => {
    signal.throwIfAborted();
    return createImageBitmap(await getBlob(`/api/images/${image.id}/thumbnail?size=${size}`, { signal }));
  });
  const masks = await Promise.all(image.masks.map(async (/** @type {any} */ one) => {
    const place = categories.findIndex((category) => category.number === one.category_number);
    return { id: one.id, rgb: colourOf(place < 0 ? null : place), mask: await unpack(one.preview) };
  }));
  const [height, width] = image.preview_size;
  return { bitmap, masks, width, height };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Picture} picture
 * @param {{masks: boolean, chosen?: Set<string>}} how Chosen masks stand out.
 */
export function drawPicture(canvas, picture, { masks, chosen }) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(picture.bitmap, 0, 0, picture.width, picture.height);
  if (!masks) return;
  const thickness = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 500));
  for (const { id, rgb, mask } of picture.masks) {
    const isChosen = chosen?.has(id) ?? false;
    const tinted = tint(mask, rgb, isChosen ? 0.6 : 0.3, isChosen ? thickness * 2 : thickness);
    if (tinted) context.drawImage(tinted, mask.x, mask.y);
  }
}

/**
 * The last drawn mask at a point of the picture.
 * @param {Picture} picture
 * @param {number} x
 * @param {number} y
 * @returns {string | null}
 */
export function maskAt({ masks }, x, y) {
  const hit = masks.findLast((/** @type {Picture["masks"][0]} */ { mask }) => {
    const [column, row] = [Math.floor(x) - mask.x, Math.floor(y) - mask.y];
    return column >= 0 && row >= 0 && column < mask.width && row < mask.height && mask.pixels[row * mask.width + column] === 1;
  });
  return hit?.id ?? null;
}
