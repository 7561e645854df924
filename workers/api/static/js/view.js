/** The canvas: shows an image with layers and clicks under zoom and pan, and turns pointers into image coordinates. */

/** @typedef {{canvas: HTMLCanvasElement, x: number, y: number}} Layer */
/** @typedef {{x: number, y: number, is_positive: boolean}} Click */
/** @typedef {{x0: number, y0: number, x1: number, y1: number}} Box In pixels of the image, half-open. */

const DRAG_PX = 5;
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
  /** @type {{button: number, x: number, y: number, does: "click" | "pan" | "box"} | null} */
  #press = null;
  /** @type {Box | null} What a drag spans now. */
  #rubber = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(click: Click) => void} onClick Called with clicks on the image, in its pixels.
   * @param {(box: Box) => void} onBox Called with boxes that were dragged, cut to the image.
   */
  constructor(canvas, onClick, onBox) {
    this.canvas = canvas;
    this.onClick = onClick;
    this.onBox = onBox;
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

  /** Drop what the pointer is in the middle of. @returns {boolean} Whether that was a box. */
  cancel() {
    const wasBox = this.#press?.does === "box";
    this.#press = null;
    this.#rubber = null;
    this.draw();
    return wasBox;
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
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const box of this.boxes) this.#frameOf(context, box);
    if (this.#rubber) this.#frameOf(context, this.#rubber);
    for (const click of this.clicks) this.#dot(context, click);
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
    const does = pans ? "pan" : event.button === LEFT && event.shiftKey ? "box" : "click";
    this.#press = { button: event.button, x: event.offsetX, y: event.offsetY, does };
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (this.#press?.does === "pan") {
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
    this.cancel();
    if (press.does === "pan" || !this.#image) return;
    if (Math.hypot(event.offsetX - press.x, event.offsetY - press.y) > DRAG_PX) {
      const box = press.does === "box" ? this.#boxTo(press, event) : null;
      if (box && box.x1 - box.x0 >= 1 && box.y1 - box.y0 >= 1) this.onBox(box);
      return;
    }
    const x = (press.x - this.#left) / this.#scale;
    const y = (press.y - this.#top) / this.#scale;
    if (x < 0 || y < 0 || x >= this.#image.width || y >= this.#image.height) return;
    this.onClick({ x, y, is_positive: press.button === LEFT && !event.altKey });
  }

  /** @param {{x: number, y: number}} press @param {PointerEvent} event @returns {Box} Between the two, cut to the image. */
  #boxTo(press, event) {
    const { width, height } = /** @type {ImageBitmap} */ (this.#image);
    const [x0, x1] = span(press.x, event.offsetX, this.#left, this.#scale, width);
    const [y0, y1] = span(press.y, event.offsetY, this.#top, this.#scale, height);
    return { x0, y0, x1, y1 };
  }
}

/**
 * Two places on an axis of the canvas, in pixels of the image, in order and inside it.
 * @param {number} a @param {number} b @param {number} start Of the image. @param {number} scale @param {number} limit
 * @returns {[number, number]}
 */
function span(a, b, start, scale, limit) {
  const inside = (/** @type {number} */ value) => Math.min(Math.max((value - start) / scale, 0), limit);
  return [inside(Math.min(a, b)), inside(Math.max(a, b))];
}
