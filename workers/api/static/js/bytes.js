/** Ids and bytes: UUIDs without a secure origin, and masks from the wire. Knows no page and no server. */

/**
 * @typedef {{size: [number, number], box: [number, number, number, number], rows: "plain" | "xor", bits: string}}
 * PackedMask
 */
/** @typedef {{x: number, y: number, width: number, height: number, pixels: Uint8Array}} Mask 0 or 1 per pixel of a box */

/** @returns {string} A random (version 4) UUID. */
export function uuid4() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/**
 * @param {string} text Base64, of either alphabet.
 * @returns {Uint8Array}
 */
function fromBase64(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
}

/**
 * Unpack a mask: zlib of big-endian bits over its box, row by row without padding; with rows "xor" a bit says that a
 * pixel differs from the one above.
 * @param {PackedMask} packed
 * @returns {Promise<Mask>}
 */
export async function unpack(packed) {
  const [x0, y0, x1, y1] = packed.box;
  const [width, height] = [x1 - x0, y1 - y0];
  const pixels = new Uint8Array(width * height);
  if (pixels.length > 0) {
    const inflated = new Blob([fromBase64(packed.bits)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bits = new Uint8Array(await new Response(inflated).arrayBuffer());
    for (let i = 0; i < pixels.length; i++) pixels[i] = (bits[i >> 3] >> (7 - (i & 7))) & 1;
    if (packed.rows === "xor") for (let i = width; i < pixels.length; i++) pixels[i] ^= pixels[i - width];
  }
  return { x: x0, y: y0, width, height, pixels };
}

/**
 * A mask from COCO's text of its runs (see `encodeRle` in tools.js).
 * @param {{size: [number, number], counts: string}} rle
 * @param {[number, number, number, number]} box x, y, width, height of what it covers.
 * @returns {Mask}
 */
export function fromRle({ size: [rows], counts }, [left, top, width, height]) {
  const pixels = new Uint8Array(width * height);
  const runs = [];
  let [at, value] = [0, 0];
  for (let next = 0; next < counts.length; value ^= 1) {
    let [run, shift, code] = [0, 0, 0];
    do {
      code = counts.charCodeAt(next++) - 48;
      run |= (code & 0x1f) << shift;
      shift += 5;
    } while (code & 0x20);
    if (code & 0x10) run |= -1 << shift;
    if (runs.length > 2) run += runs[runs.length - 2];
    runs.push(run);
    const end = at + run;
    if (value) for (let i = at; i < end; i++) pixels[((i % rows) - top) * width + Math.floor(i / rows) - left] = 1;
    at = end;
  }
  return { x: left, y: top, width, height, pixels };
}
