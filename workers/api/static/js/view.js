/** The canvas: shows an image with layers and clicks under zoom and pan, and turns pointers into image coordinates. */

/** @typedef {{canvas: HTMLCanvasElement, x: number, y: number}} Layer */
/** @typedef {{x: number, y: number, is_positive: boolean}} Click */

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
  /** @type {{button: number, x: number, y: number, pan: boolean} | null} */
  #press = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(click: Click) => void} onClick Called with clicks on the image, in its pixels.
   */
  constructor(canvas, onClick) {
    this.canvas = canvas;
    this.onClick = onClick;
    /** @type {Layer[]} */
    this.layers = [];
    /** @type {Click[]} */
    this.clicks = [];
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => { this.#press = null; });
  }

  /** @param {ImageBitmap | null} image */
  show(image) {
    this.#image?.close();
    this.#image = image;
    this.layers = [];
    this.clicks = [];
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
    for (const click of this.clicks) this.#dot(context, click);
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
    const pan = event.button === MIDDLE || (event.button === LEFT && this.#space);
    this.#press = { button: event.button, x: event.offsetX, y: event.offsetY, pan };
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.#press?.pan) return;
    this.pan(event.offsetX - this.#press.x, event.offsetY - this.#press.y);
    this.#press.x = event.offsetX;
    this.#press.y = event.offsetY;
  }

  /** @param {PointerEvent} event */
  #up(event) {
    const press = this.#press;
    if (!press || event.button !== press.button) return;
    this.#press = null;
    if (press.pan || !this.#image || Math.hypot(event.offsetX - press.x, event.offsetY - press.y) > DRAG_PX) return;
    const x = (press.x - this.#left) / this.#scale;
    const y = (press.y - this.#top) / this.#scale;
    if (x < 0 || y < 0 || x >= this.#image.width || y >= this.#image.height) return;
    this.onClick({ x, y, is_positive: press.button === LEFT && !event.altKey });
  }
}
