/** Colours of categories, and masks as pictures to lay over the image. */

/** Okabe and Ito's palette (distinct for colour-blind people) and some more; categories take them in turn. */
const PALETTE = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [204, 121, 167], [213, 94, 0], [100, 120, 255],
  [180, 220, 90], [255, 140, 200], [150, 100, 60],
];

/** @param {number | null} index Of the category in the campaign's list, null for none. @returns {number[]} RGB */
export const colourOf = (index) => (index === null ? [255, 255, 255] : PALETTE[index % PALETTE.length]);

/**
 * A mask tinted, with an opaque outline inside its border.
 * @param {import("./bytes.js").Mask} mask
 * @param {number[]} rgb
 * @param {number} alpha Of the inside, in [0, 1].
 * @param {number} thickness Of the outline in image pixels.
 * @returns {HTMLCanvasElement | null} Null when the mask is empty.
 */
export function tint(mask, rgb, alpha, thickness) {
  const { width, height, pixels } = mask;
  if (width === 0 || height === 0) return null;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  const out = new DataView(image.data.buffer);
  const colour = (rgb[0] << 24) | (rgb[1] << 16) | (rgb[2] << 8);
  const [inside, edge] = [colour | Math.round(alpha * 255), colour | 255];
  const t = thickness;
  for (let y = 0, i = 0; y < height; y++) {
    const border = y < t || y >= height - t;
    for (let x = 0; x < width; x++, i++) {
      if (!pixels[i]) continue;
      const isEdge = border || x < t || x >= width - t ||
        !(pixels[i - t] && pixels[i + t] && pixels[i - t * width] && pixels[i + t * width]);
      out.setInt32(i * 4, isEdge ? edge : inside);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
