/** The canvas: shows an image with layers and clicks under zoom and pan, and turns pointers into image coordinates. */

import { drawStroke } from "./tools.js";

/** @typedef {{canvas: HTMLCanvasElement, x: number, y: number}} Layer */
/** @typedef {{x: number, y: number, is_positive: boolean}} Click */
/** @typedef {{x0: number, y0: number, x1: number, y1: number}} Box In pixels of the image, half-open. */

/**
 * @typedef {{points: [number, number][], radius: number, is_positive: boolean}} Stroke In pixels of the image.
 * @typedef {{onClick: (click: Click) => void, onBox: (box: Box) => void, onStroke: (stroke: Stroke) => void}} Pointing
 *   Called with clicks on the image, with boxes that were dragged (cut to the image) and with strokes of the brush.
 */

const DRAG_PX = 5;
/** Of a stroke; the log takes 5,000. */
const MOST_POINTS = 4000;
const [LEFT, MIDDLE, RIGHT] = [0, 1, 2];

export class View {
  #frame = 0;
  #fitted = true;
  /** @type {ImageBitmap | null} */
  #image = null;
  #scale = 1;
  #left = 0;
  #top = 0;
  #space = false;
  /** @type {{button: number, x: number, y: number, does: "click" | "pan" | "box" | "paint"} | null} */
  #press = null;
  /** @type {Box | null} What a drag spans now. */
  #rubber = null;
  /** @type {Stroke | null} What is being painted. */
  #stroke = null;
  #pointer = { x: 0, y: 0 };

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Pointing} pointing
   */
  constructor(canvas, pointing) {
    this.canvas = canvas;
    this.pointing = pointing;
    /** @type {number | null} Pixels of the image from the middle to the edge of the brush; null: the pointer clicks. */
    this.brush = null;
    /** @type {Layer[]} */
    this.layers = [];
    /** @type {Click[]} */
    this.clicks = [];
    /** @type {Box[]} */
    this.boxes = [];
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
  }

  /** @param {ImageBitmap | null} image */
  show(image) {
    this.#image?.close();
    this.#image = image;
    this.layers = [];
    this.clicks = [];
    this.boxes = [];
    this.cancel();
    this.fit();
  }

  /** The whole image, centred. */
  fit() {
    this.#fitted = true;
    if (this.#image) {
      const { clientWidth, clientHeight } = this.canvas;
      this.#scale = Math.min(clientWidth / this.#image.width, clientHeight / this.#image.height) || 1;
      this.#left = (clientWidth - this.#image.width * this.#scale) / 2;
      this.#top = (clientHeight - this.#image.height * this.#scale) / 2;
    }
    this.draw();
  }

  /** @param {number} factor @param {number} [x] Of the point that stays, in the canvas; its centre. @param {number} [y] */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(Math.max(this.#scale * factor, 0.02), 64);
    this.#left = x - ((x - this.#left) * scale) / this.#scale;
    this.#top = y - ((y - this.#top) * scale) / this.#scale;
    this.#scale = scale;
    this.#fitted = false;
    this.draw();
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.#left += dx;
    this.#top += dy;
    this.#fitted = false;
    this.draw();
  }

  /** @param {boolean} held Whether Space is down: the left button then moves the image. */
  hold(held) {
    this.#space = held;
    this.canvas.classList.toggle("pan", held);
  }

  /** Drop what the pointer is in the middle of. @returns {boolean} Whether that was a box or a stroke. */
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
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.#fitted) this.fit();
    if (this.#frame) cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#paint();
  }

  #paint() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.#image) return;
    const zoom = this.#scale * ratio;
    context.setTransform(zoom, 0, 0, zoom, this.#left * ratio, this.#top * ratio);
    context.imageSmoothingEnabled = zoom < 2;
    context.drawImage(this.#image, 0, 0);
    for (const layer of this.layers) context.drawImage(layer.canvas, layer.x, layer.y);
    if (this.#stroke) {
      context.strokeStyle = this.#stroke.is_positive ? "rgb(18 130 59 / .6)" : "rgb(195 38 28 / .6)";
      drawStroke(context, this.#stroke.points, this.#stroke.radius);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const box of this.boxes) this.#frameOf(context, box);
    if (this.#rubber) this.#frameOf(context, this.#rubber);
    for (const click of this.clicks) this.#dot(context, click);
    if (this.brush !== null) this.#brushAt(context, this.brush);
  }

  /** The brush at the pointer. @param {CanvasRenderingContext2D} context @param {number} radius */
  #brushAt(context, radius) {
    context.beginPath();
    context.arc(this.#pointer.x, this.#pointer.y, radius * this.#scale, 0, 2 * Math.PI);
    context.lineWidth = 1.5;
    context.strokeStyle = "#ffffff";
    context.stroke();
  }

  /** White with black dashes: seen on every image. @param {CanvasRenderingContext2D} context @param {Box} box */
  #frameOf(context, { x0, y0, x1, y1 }) {
    context.beginPath();
    context.rect(x0 * this.#scale + this.#left, y0 * this.#scale + this.#top, (x1 - x0) * this.#scale, (y1 - y0) * this.#scale);
    context.lineWidth = 1.5;
    context.strokeStyle = "#ffffff";
    context.stroke();
    context.setLineDash([5, 5]);
    context.strokeStyle = "#000000";
    context.stroke();
    context.setLineDash([]);
  }

  /** @param {CanvasRenderingContext2D} context @param {Click} click */
  #dot(context, click) {
    const x = click.x * this.#scale + this.#left;
    const y = click.y * this.#scale + this.#top;
    context.beginPath();
    context.arc(x, y, 7, 0, 2 * Math.PI);
    context.fillStyle = click.is_positive ? "#12823b" : "#c3261c";
    context.fill();
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2;
    context.stroke();
    context.beginPath();
    context.moveTo(x - 3.5, y);
    context.lineTo(x + 3.5, y);
    if (click.is_positive) {
      context.moveTo(x, y - 3.5);
      context.lineTo(x, y + 3.5);
    }
    context.stroke();
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 33 : event.deltaY;
    this.zoom(Math.exp(-pixels / 500), event.offsetX, event.offsetY);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (this.#press || ![LEFT, MIDDLE, RIGHT].includes(event.button)) return;
    if (event.button === MIDDLE) event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const pans = event.button === MIDDLE || (event.button === LEFT && this.#space);
    const paints = this.brush !== null && this.#image !== null;
    const does = pans ? "pan" : paints ? "paint" : event.button === LEFT && event.shiftKey ? "box" : "click";
    this.#press = { button: event.button, x: event.offsetX, y: event.offsetY, does };
    if (does === "paint") {
      const is_positive = event.button === LEFT && !event.altKey;
      this.#stroke = { points: [this.#inImage(event.offsetX, event.offsetY)], radius: this.brush ?? 0, is_positive };
      this.draw();
    }
  }

  /** @param {PointerEvent} event */
  #move(event) {
    this.#pointer = { x: event.offsetX, y: event.offsetY };
    if (this.brush !== null) this.draw();
    if (this.#stroke) this.#extend(this.#stroke, event);
    else if (this.#press?.does === "pan") {
      this.pan(event.offsetX - this.#press.x, event.offsetY - this.#press.y);
      this.#press.x = event.offsetX;
      this.#press.y = event.offsetY;
    } else if (this.#press?.does === "box" && this.#image) {
      this.#rubber = this.#boxTo(this.#press, event);
      this.draw();
    }
  }

  /** @param {PointerEvent} event */
  #up(event) {
    const press = this.#press;
    if (!press || event.button !== press.button) return;
    const stroke = this.#stroke;
    this.cancel();
    if (stroke) this.pointing.onStroke(stroke);
    if (press.does === "pan" || press.does === "paint" || !this.#image) return;
    if (Math.hypot(event.offsetX - press.x, event.offsetY - press.y) > DRAG_PX) {
      const box = press.does === "box" ? this.#boxTo(press, event) : null;
      if (box && box.x1 - box.x0 >= 1 && box.y1 - box.y0 >= 1) this.pointing.onBox(box);
      return;
    }
    const [x, y] = this.#inImage(press.x, press.y);
    if (x < 0 || y < 0 || x >= this.#image.width || y >= this.#image.height) return;
    this.pointing.onClick({ x, y, is_positive: press.button === LEFT && !event.altKey });
  }

  /** @param {number} x @param {number} y Of the canvas. @returns {[number, number]} In pixels of the image. */
  #inImage(x, y) {
    return [(x - this.#left) / this.#scale, (y - this.#top) / this.#scale];
  }

  /** A point where the stroke has moved on; a long stroke loses every second one. @param {Stroke} stroke @param {PointerEvent} event */
  #extend(stroke, event) {
    const [x, y] = this.#inImage(event.offsetX, event.offsetY);
    const [lastX, lastY] = stroke.points[stroke.points.length - 1];
    if (Math.hypot(x - lastX, y - lastY) < Math.max(0.5, stroke.radius / 8)) return;
    if (stroke.points.length === MOST_POINTS) stroke.points = stroke.points.filter((_point, index) => index % 2 === 0);
    stroke.points.push([x, y]);
  }

  /** @param {{x: number, y: number}} press @param {PointerEvent} event @returns {Box} Between the two, cut to the image. */
  #boxTo(press, event) {
    const { width, height } = /** @type {ImageBitmap} */ (this.#image);
    const [startX, startY] = this.#inImage(press.x, press.y);
    const [endX, endY] = this.#inImage(event.offsetX, event.offsetY);
    const [x0, x1] = span(startX, endX, width);
    const [y0, y1] = span(startY, endY, height);
    return { x0, y0, x1, y1 };
  }
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
