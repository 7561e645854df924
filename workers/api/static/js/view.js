/** The canvas: shows an image with layers and clicks under zoom and pan, and turns pointers into image coordinates. */

import { drawBox, drawBrush, drawClick, drawCrosshair, drawGrid, drawOutline } from "./marks.js";
import { drawStroke } from "./tools.js";

/** @typedef {{canvas: HTMLCanvasElement, x: number, y: number, width: number, height: number}} Layer In pixels of the image. */
/** @typedef {import("./tiles.js").Size} Size */
/** @typedef {{x: number, y: number, is_positive: boolean}} Click */
/** @typedef {{x0: number, y0: number, x1: number, y1: number}} Box In pixels of the image, half-open. */
/** @typedef {{points: [number, number][], radius: number, is_positive: boolean}} Stroke In pixels of the image. */
/** @typedef {"click" | "box" | "brush" | "eraser" | "polygon"} Tool */

/**
 * @typedef {object} Pointing Called with what was pointed at.
 * @property {(click: Click, isNew: boolean) => void} onClick With Ctrl it is meant for a new object.
 * @property {(box: Box) => void} onBox Cut to the image.
 * @property {(stroke: Stroke) => void} onStroke
 * @property {() => void} onOutline The outline changed.
 * @property {() => void} onClosed The outline was closed by a click on its first corner.
 * @property {() => void} onZoom The image is shown larger or smaller.
 * @property {() => boolean} isShiftNegative Whether Shift+click says no.
 */

const DRAG_PX = 5;
/** How near a pointer comes to a corner to hold it; fingers are wider. */
const REACH_PX = { mouse: 8, touch: 20 };
/** Of a stroke; the log takes 5,000. */
const MOST_POINTS = 4000;
const [LEFT, MIDDLE, RIGHT] = [0, 1, 2];
/** Of a button in the set of those that are down. */
const BITS = [1, 4, 2];
/** Limits of the zoom; the whole image is always within them. */
const [FARTHEST, NEAREST] = [0.02, 64];
/** Pixels of the wheel after which the image is e times as large, and those of a trackpad's pinch, which come with Ctrl. */
const [WHEEL_PX, PINCH_PX] = [500, 100];
/** Steps of a wheel are larger. */
const MOST_PINCH_PX = 50;
/** Zoom from which the pixels' borders are drawn. */
const GRID_ZOOM = 14;
/** Longest side of what layers are gathered on while the image is shown smaller than that. */
const GATHER_PX = 2048;
/** Smaller copies of an image are made down to this longest side. */
const SMALLEST_COPY_PX = 1024;
const FLASH_MS = 450;

export class View {
  #frame = 0;
  #fitted = true;
  /** @type {Size | null} */
  #image = null;
  /** @type {ImageBitmap[]} The image, or a small picture of it, and copies of half the size of the one before. */
  #copies = [];
  /** @type {import("./tiles.js").Tiles | null} What is sharper than the small picture. */
  #tiles = null;
  #scale = 1;
  #left = 0;
  #top = 0;
  #space = false;
  /**
   * Where in the canvas a button went down, and on which point of the image: that stays when the image is zoomed meanwhile.
   * @type {{pointer: number, button: number, x: number, y: number, point: [number, number],
   *   does: "click" | "pan" | "box" | "paint" | "outline"} | null}
   */
  #press = null;
  /** @type {Box | null} What a drag spans now. */
  #rubber = null;
  /** @type {Stroke | null} What is being painted. */
  #stroke = null;
  /** @type {{x: number, y: number} | null} In the canvas; null: not over it. */
  #pointer = null;
  /** Whether the pointer was last moved by keys. */
  #byKeys = false;
  /** @type {Map<number, {x: number, y: number}>} Fingers that are down. */
  #touches = new Map();
  /** @type {{canvas: HTMLCanvasElement, scale: number, layers: readonly Layer[]} | null} */
  #gathered = null;
  /** @type {{layer: Layer, from: number} | null} */
  #flash = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    /** @type {Pointing | null} */
    this.pointing = null;
    this.tool = /** @type {Tool} */ ("click");
    /** Pixels of the image from the middle to the edge of the brush. */
    this.radius = 8;
    /** @type {import("./polygon.js").Polygon | null} */
    this.polygon = null;
    /** @type {readonly Layer[]} Masks that stay as they are for a while. */
    this.layers = [];
    /** @type {Layer | null} The mask that is being worked on. */
    this.active = null;
    /** @type {Click[]} */
    this.clicks = [];
    /** @type {Box[]} */
    this.boxes = [];
    this.crosshair = false;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#lost(event));
    canvas.addEventListener("pointerleave", () => this.#leave());
  }

  /**
   * @param {ImageBitmap | null} picture The image, or a small picture of one that is shown in tiles.
   * @param {import("./tiles.js").Tiles | null} [tiles]
   */
  show(picture, tiles = null) {
    for (const copy of this.#copies) copy.close();
    this.#tiles?.close();
    this.#tiles = tiles;
    if (tiles) tiles.onArrival = () => this.draw();
    this.#image = tiles?.size ?? picture;
    this.#copies = picture ? [picture] : [];
    this.layers = [];
    this.active = this.#gathered = this.#flash = null;
    this.clicks = [];
    this.boxes = [];
    this.take(this.tool === "polygon" ? "click" : this.tool, this.radius);
    this.fit();
    if (picture) this.#copy(picture);
  }

  /**
   * Make the smaller copies, which are quicker to draw.
   * @param {ImageBitmap} picture
   */
  async #copy(picture) {
    for (let last = picture; Math.max(last.width, last.height) > 2 * SMALLEST_COPY_PX; ) {
      const [resizeWidth, resizeHeight] = [Math.ceil(last.width / 2), Math.ceil(last.height / 2)];
      const copy = await createImageBitmap(last, { resizeWidth, resizeHeight, resizeQuality: "medium" }).catch(() => null);
      if (!copy || this.#copies[0] !== picture) {
        copy?.close();
        return;
      }
      this.#copies.push(copy);
      last = copy;
    }
    this.draw();
  }

  /** Pixels of the canvas (as CSS has them) that a pixel of the image takes. */
  get scale() { return this.#scale; }

  /**
   * What the pointer does from now on.
   * @param {Tool} tool @param {number} radius Of the brush.
   */
  take(tool, radius) {
    this.cancel();
    this.tool = tool;
    this.radius = radius;
    this.polygon = null;
    this.draw();
  }

  /** The whole image, centred. */
  fit() {
    this.#fitted = true;
    if (this.#image) {
      const { clientWidth, clientHeight } = this.canvas;
      this.#scale = this.#whole(this.#image);
      this.pointing?.onZoom();
      this.#left = (clientWidth - this.#image.width * this.#scale) / 2;
      this.#top = (clientHeight - this.#image.height * this.#scale) / 2;
    }
    this.draw();
  }

  /** @param {Size} image @returns {number} The scale at which the canvas just holds it. */
  #whole({ width, height }) { return Math.min(this.canvas.clientWidth / width, this.canvas.clientHeight / height) || 1; }

  /** @param {number} factor @param {number} [x] Of the point that stays, in the canvas; its centre. @param {number} [y] */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const whole = this.#image ? this.#whole(this.#image) : 1;
    const scale = Math.min(Math.max(this.#scale * factor, Math.min(FARTHEST, whole)), Math.max(NEAREST, whole));
    this.#left = x - ((x - this.#left) * scale) / this.#scale;
    this.#top = y - ((y - this.#top) * scale) / this.#scale;
    this.#scale = scale;
    this.#fitted = false;
    this.pointing?.onZoom();
    this.draw();
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.#left += dx;
    this.#top += dy;
    this.#fitted = false;
    this.draw();
  }

  /**
   * Move the crosshair by keys; the image follows it over the edge.
   * @param {number} dx @param {number} dy
   */
  nudge(dx, dy) {
    const { clientWidth, clientHeight } = this.canvas;
    const { x, y } = this.#pointer ?? { x: clientWidth / 2, y: clientHeight / 2 };
    const [aimX, aimY] = this.#pointer ? [x + dx, y + dy] : [x, y];
    this.#pointer = { x: Math.min(Math.max(aimX, 0), clientWidth - 1), y: Math.min(Math.max(aimY, 0), clientHeight - 1) };
    this.#byKeys = true;
    this.pan(this.#pointer.x - aimX, this.#pointer.y - aimY);
  }

  /**
   * Click where the pointer or the crosshair is.
   * @param {boolean} is_positive
   */
  clickAtPointer(is_positive) {
    if (!this.#pointer) this.nudge(0, 0);
    if (this.#pointer) this.#clickAt(this.#inImage(this.#pointer.x, this.#pointer.y), is_positive, false);
  }

  /**
   * Light a layer up and let it fade.
   * @param {Layer} layer
   */
  flash(layer) {
    this.#flash = { layer, from: performance.now() };
    this.draw();
  }

  /** @param {boolean} held Whether Space is down: the left button then moves the image. */
  hold(held) {
    this.#space = held;
    this.canvas.classList.toggle("pan", held);
  }

  /**
   * Drop what the pointer is in the middle of.
   * @returns {boolean} Whether that was a box or a stroke.
   */
  cancel() {
    const wasDrawing = this.#press?.does === "box" || this.#press?.does === "paint";
    this.#press = this.#rubber = this.#stroke = null;
    this.draw();
    return wasDrawing;
  }

  /** Draw with the next frame. */
  draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #resize() {
    if (this.#fitted) this.fit();
    if (this.#frame) cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#paint();
  }

  #paint() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const ratio = devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((side) => Math.round(side * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const image = this.#image;
    if (!image) return;
    const zoom = this.#scale * ratio;
    context.setTransform(zoom, 0, 0, zoom, this.#left * ratio, this.#top * ratio);
    context.imageSmoothingEnabled = zoom < 2;
    // What is transparent is white to the model. A pixel less on each side, which would shine through at the edges.
    context.fillStyle = "#ffffff";
    context.fillRect(1 / zoom, 1 / zoom, image.width - 2 / zoom, image.height - 2 / zoom);
    const copy = this.#copies.filter(({ width }) => width >= image.width * zoom).at(-1);
    context.drawImage(copy ?? this.#copies[0], 0, 0, image.width, image.height);
    if (!copy) this.#tiles?.draw(context, zoom, this.#seen(image));
    this.#paintLayers(context, image, zoom);
    if (this.active) draw(context, this.active);
    this.#paintFlash(context);
    if (this.#scale >= GRID_ZOOM) {
      drawGrid(context, this.#seen(image), 1 / this.#scale);
    }
    if (this.#stroke) {
      context.strokeStyle = this.#stroke.is_positive ? "rgb(18 130 59 / .6)" : "rgb(195 38 28 / .6)";
      drawStroke(context, this.#stroke.points, this.#stroke.radius);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const box of this.boxes) drawBox(context, this.#place([box.x0, box.y0]), this.#place([box.x1, box.y1]));
    if (this.#rubber) {
      drawBox(context, this.#place([this.#rubber.x0, this.#rubber.y0]), this.#place([this.#rubber.x1, this.#rubber.y1]));
    }
    for (const { x, y, is_positive } of this.clicks) drawClick(context, this.#place([x, y]), is_positive);
    if (this.polygon) {
      const rings = this.polygon.rings.map((ring) => ring.map((point) => this.#place(point)));
      drawOutline(context, rings, this.polygon.isOpen, this.#pointer);
    }
    if (!this.#pointer) return;
    if (this.tool === "brush" || this.tool === "eraser") {
      drawBrush(context, this.#pointer, this.radius * this.#scale, this.tool === "eraser");
    }
    if (this.crosshair || this.#byKeys) drawCrosshair(context, this.#pointer, this.canvas);
  }

  /**
   * Layers one by one where few are seen, else gathered on one canvas.
   * @param {CanvasRenderingContext2D} context @param {Size} image @param {number} zoom
   */
  #paintLayers(context, image, zoom) {
    const scale = Math.min(1, GATHER_PX / Math.max(image.width, image.height));
    if (scale < 1 && zoom > scale) {
      const seen = this.#seen(image);
      for (const layer of this.layers) if (meets(layer, seen)) draw(context, layer);
      return;
    }
    if (this.layers.length === 0) return;
    context.drawImage(this.#gather(image, scale), 0, 0, image.width, image.height);
  }

  /** @param {Size} image @param {number} scale @returns {HTMLCanvasElement} */
  #gather(image, scale) {
    const known = this.#gathered;
    const canvas = known?.canvas ?? document.createElement("canvas");
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const before = known?.layers ?? [];
    const isLonger = known !== null && before.every((layer, index) => layer === this.layers[index]);
    if (!isLonger) {
      canvas.width = Math.ceil(image.width * scale);
      canvas.height = Math.ceil(image.height * scale);
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    for (const layer of isLonger ? this.layers.slice(before.length) : this.layers) draw(context, layer);
    this.#gathered = { canvas, scale, layers: [...this.layers] };
    return canvas;
  }

  /** @param {CanvasRenderingContext2D} context */
  #paintFlash(context) {
    if (!this.#flash) return;
    const left = 1 - (performance.now() - this.#flash.from) / FLASH_MS;
    if (left <= 0) {
      this.#flash = null;
      return;
    }
    context.globalAlpha = left;
    draw(context, this.#flash.layer);
    context.globalAlpha = 1;
    this.draw();
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 33 : event.deltaY;
    const isPinch = event.ctrlKey && Math.abs(pixels) < MOST_PINCH_PX;
    this.zoom(Math.exp(-pixels / (isPinch ? PINCH_PX : WHEEL_PX)), event.offsetX, event.offsetY);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    const at = { x: event.offsetX, y: event.offsetY };
    if (event.pointerType === "touch") {
      this.#touches.set(event.pointerId, at);
      if (this.#touches.size > 1) {
        this.polygon?.drop();
        this.cancel();
        return;
      }
    }
    if (this.#press || ![LEFT, MIDDLE, RIGHT].includes(event.button)) return;
    if (event.button === MIDDLE) event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const point = this.#inImage(at.x, at.y);
    this.#press = { pointer: event.pointerId, button: event.button, ...at, point, does: this.#meant(event) };
    if (this.#press.does === "paint") {
      const is_positive = event.button === LEFT && !event.altKey && this.tool !== "eraser";
      this.#stroke = { points: [point], radius: this.radius, is_positive };
    } else if (this.#press.does === "outline" && this.polygon) {
      const wasOpen = this.polygon.isOpen;
      const reach = (event.pointerType === "touch" ? REACH_PX.touch : REACH_PX.mouse) / this.#scale;
      this.polygon.press(point, reach, event.button === RIGHT || event.altKey);
      if (wasOpen && !this.polygon.isOpen && this.polygon.rings.length > 0) this.pointing?.onClosed();
    }
    this.draw();
  }

  /** @param {PointerEvent} event @returns {"click" | "pan" | "box" | "paint" | "outline"} What a button that goes down begins. */
  #meant(event) {
    if (event.button === MIDDLE || (event.button === LEFT && this.#space)) return "pan";
    if (!this.#image) return "click";
    if (this.tool === "brush" || this.tool === "eraser") return "paint";
    if (this.tool === "polygon") return "outline";
    return event.button === LEFT && (event.shiftKey || this.tool === "box") ? "box" : "click";
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (this.#touches.has(event.pointerId) && this.#pinch(event)) return;
    if (this.#press && event.pointerId !== this.#press.pointer) return;  // a hand that rests beside the pen
    this.#pointer = { x: event.offsetX, y: event.offsetY };
    this.#byKeys = false;
    if (this.tool !== "click" || this.crosshair) this.draw();
    if (this.#press && !(event.buttons & BITS[this.#press.button])) this.#up(event);  // another button is still down
    else if (this.#stroke) this.#extend(this.#stroke, event);
    else if (this.#press?.does === "outline" && this.polygon) this.polygon.move(this.#inImage(event.offsetX, event.offsetY));
    else if (this.#press?.does === "pan") {
      this.pan(event.offsetX - this.#press.x, event.offsetY - this.#press.y);
      this.#press.x = event.offsetX;
      this.#press.y = event.offsetY;
    } else if (this.#press?.does === "box" && this.#image) {
      this.#rubber = between(this.#press.point, this.#inImage(event.offsetX, event.offsetY), this.#image);
      this.draw();
    }
  }

  /**
   * Two fingers move and zoom the image.
   * @param {PointerEvent} event
   * @returns {boolean} Whether there are two.
   */
  #pinch(event) {
    const before = [...this.#touches.values()];
    this.#touches.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (before.length < 2) return false;
    const after = [...this.#touches.values()];
    const middle = (/** @type {{x: number, y: number}[]} */ [a, b]) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    const apart = (/** @type {{x: number, y: number}[]} */ [a, b]) => Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1);
    const [from, to] = [middle(before), middle(after)];
    this.pan(to.x - from.x, to.y - from.y);
    this.zoom(apart(after) / apart(before), to.x, to.y);
    return true;
  }

  #leave() {
    if (this.#press || this.#byKeys) return;
    this.#pointer = null;
    this.draw();
  }

  /** @param {PointerEvent} event */
  #lost(event) {
    this.#touches.delete(event.pointerId);
    this.polygon?.release();
    this.cancel();
  }

  /** @param {PointerEvent} event */
  #up(event) {
    this.#touches.delete(event.pointerId);
    const press = this.#press;
    if (!press || event.pointerId !== press.pointer) return;
    const stroke = this.#stroke;
    this.cancel();
    if (stroke) this.pointing?.onStroke(stroke);
    if (press.does === "outline") {
      this.polygon?.release();
      this.pointing?.onOutline();
    }
    if (press.does === "pan" || press.does === "paint" || press.does === "outline" || !this.#image) return;
    if (Math.hypot(event.offsetX - press.x, event.offsetY - press.y) > DRAG_PX) {
      const box = press.does === "box" ? between(press.point, this.#inImage(event.offsetX, event.offsetY), this.#image) : null;
      if (box && box.x1 - box.x0 >= 1 && box.y1 - box.y0 >= 1) this.pointing?.onBox(box);
      return;
    }
    const isNegative = event.altKey || (event.shiftKey && this.pointing?.isShiftNegative() === true);
    this.#clickAt(press.point, press.button === LEFT && !isNegative, event.ctrlKey || event.metaKey);
  }

  /** @param {[number, number]} point In pixels of the image. @param {boolean} is_positive @param {boolean} isNew */
  #clickAt([x, y], is_positive, isNew) {
    if (!this.#image || x < 0 || y < 0 || x >= this.#image.width || y >= this.#image.height) return;
    this.pointing?.onClick({ x, y, is_positive }, isNew);
  }

  /** @param {[number, number]} point In pixels of the image. @returns {[number, number]} In the canvas. */
  #place([x, y]) {
    return [x * this.#scale + this.#left, y * this.#scale + this.#top];
  }

  /** @param {number} x @param {number} y Of the canvas. @returns {[number, number]} In pixels of the image. */
  #inImage(x, y) {
    return [(x - this.#left) / this.#scale, (y - this.#top) / this.#scale];
  }

  /**
   * A point where the stroke has moved on; a long stroke loses every second one.
   * @param {Stroke} stroke
   * @param {PointerEvent} event
   */
  #extend(stroke, event) {
    const [x, y] = this.#inImage(event.offsetX, event.offsetY);
    const [lastX, lastY] = stroke.points[stroke.points.length - 1];
    if (Math.hypot(x - lastX, y - lastY) < Math.max(0.5, stroke.radius / 8)) return;
    if (stroke.points.length === MOST_POINTS) stroke.points = stroke.points.filter((_point, index) => index % 2 === 0);
    stroke.points.push([x, y]);
  }

  /** @param {Size} image @returns {Box} The part of it that the canvas shows. */
  #seen(image) {
    return between(this.#inImage(0, 0), this.#inImage(this.canvas.clientWidth, this.canvas.clientHeight), image);
  }
}

/** @param {CanvasRenderingContext2D} context @param {Layer} layer */
const draw = (context, { canvas, x, y, width, height }) => context.drawImage(canvas, x, y, width, height);

/** @param {Layer} layer @param {Box} box */
const meets = (layer, box) =>
  layer.x < box.x1 && layer.y < box.y1 && layer.x + layer.width > box.x0 && layer.y + layer.height > box.y0;

/**
 * @param {[number, number]} from In pixels of the image. @param {[number, number]} to
 * @param {Size} image
 * @returns {Box} Between two points, cut to the image.
 */
function between([fromX, fromY], [toX, toY], { width, height }) {
  const [x0, x1] = span(fromX, toX, width);
  const [y0, y1] = span(fromY, toY, height);
  return { x0, y0, x1, y1 };
}

/**
 * Two places on an axis, in order and inside the image.
 * @param {number} a @param {number} b @param {number} limit
 * @returns {[number, number]}
 */
function span(a, b, limit) {
  const inside = (/** @type {number} */ value) => Math.min(Math.max(value, 0), limit);
  return [inside(Math.min(a, b)), inside(Math.max(a, b))];
}

/** The page's canvas. */
export const view = new View(/** @type {HTMLCanvasElement} */ (document.getElementById("canvas")));
