/** Parts of an image that is too large to be held whole: fetched where they are seen, as sharp as they are seen. */

/** As the server cuts them. */
const TILE_PX = 1024;
/** Tiles that are kept, 4 MB each. */
const MOST = 48;
const AGAIN_MS = 3000;

/** @typedef {{width: number, height: number}} Size */

/** Images with more pixels are shown in tiles. */
const WHOLE_PIXELS = 12_000_000;

/** @param {Size} size */
export const isLarge = ({ width, height }) => width * height > WHOLE_PIXELS;

export class Tiles {
  /** @type {Map<string, ImageBitmap | null>} By level, column and row, those seen last at the end; null: on its way. */
  #known = new Map();
  #closed = false;

  /**
   * @param {Size} size Of the image.
   * @param {(place: string) => Promise<Blob>} load A tile by "level/column/row".
   */
  constructor(size, load) {
    this.size = size;
    this.load = load;
    /** @type {() => void} Called when another tile can be drawn. */
    this.onArrival = () => {};
  }

  /**
   * Draw what is there of a part of the image, and fetch the rest of it.
   * @param {CanvasRenderingContext2D} context Set up in pixels of the image.
   * @param {number} zoom Pixels of the screen that one of the image takes.
   * @param {import("./view.js").Box} seen
   */
  draw(context, zoom, seen) {
    const { width, height } = this.size;
    const level = Math.max(0, Math.floor(Math.log2(1 / zoom)));
    const [wide, high] = [width / Math.ceil(width / 2 ** level), height / Math.ceil(height / 2 ** level)];
    const columns = between(seen.x0 / (TILE_PX * wide), seen.x1 / (TILE_PX * wide));
    const rows = between(seen.y0 / (TILE_PX * high), seen.y1 / (TILE_PX * high));
    for (const row of rows) {
      for (const column of columns) {
        const tile = this.#get(`${level}/${column}/${row}`);
        if (tile) context.drawImage(tile, column * TILE_PX * wide, row * TILE_PX * high, tile.width * wide, tile.height * high);
      }
    }
    for (const [place, tile] of this.#known) {
      if (this.#known.size <= Math.max(MOST, rows.length * columns.length)) break;
      tile?.close();
      this.#known.delete(place);
    }
  }

  /** Forget all. */
  close() {
    this.#closed = true;
    for (const tile of this.#known.values()) tile?.close();
    this.#known.clear();
  }

  /** @param {string} place @returns {ImageBitmap | null} */
  #get(place) {
    const known = this.#known.get(place);
    if (known === undefined) this.#fetch(place);
    this.#known.delete(place);
    this.#known.set(place, known ?? null);
    return known ?? null;
  }

  /** @param {string} place */
  async #fetch(place) {
    const tile = await this.load(place).then(createImageBitmap).catch(() => null);
    if (this.#closed || !this.#known.has(place)) {
      tile?.close();
      return;
    }
    if (tile) {
      this.#known.set(place, tile);
      this.onArrival();
    } else {
      setTimeout(() => {
        this.#known.delete(place);
        if (!this.#closed) this.onArrival();
      }, AGAIN_MS);
    }
  }
}

/** @param {number} from @param {number} to @returns {number[]} The whole steps that an interval touches. */
const between = (from, to) => Array.from({ length: Math.ceil(to) - Math.floor(from) }, (_, index) => Math.floor(from) + index);
