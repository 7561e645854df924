/** What is drawn over the image and its masks: clicks, boxes, outlines, brush, crosshair, the pixels' borders. */

/** @typedef {CanvasRenderingContext2D} Context */
/** @typedef {[number, number]} Place In the canvas. */

/**
 * White with black dashes: seen on every image.
 * @param {Context} context With the path.
 */
function strokeTwice(context) {
  context.lineWidth = 1.5;
  context.strokeStyle = "#ffffff";
  context.stroke();
  context.setLineDash([5, 5]);
  context.strokeStyle = "#000000";
  context.stroke();
  context.setLineDash([]);
}

/**
 * A click with its sign.
 * @param {Context} context @param {Place} place @param {boolean} is_positive
 */
export function drawClick(context, [x, y], is_positive) {
  context.beginPath();
  context.arc(x, y, 7, 0, 2 * Math.PI);
  context.fillStyle = is_positive ? "#12823b" : "#c3261c";
  context.fill();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2;
  context.stroke();
  context.beginPath();
  context.moveTo(x - 3.5, y);
  context.lineTo(x + 3.5, y);
  if (is_positive) {
    context.moveTo(x, y - 3.5);
    context.lineTo(x, y + 3.5);
  }
  context.stroke();
}

/** @param {Context} context @param {Place} from @param {Place} to */
export function drawBox(context, [x0, y0], [x1, y1]) {
  context.beginPath();
  context.rect(x0, y0, x1 - x0, y1 - y0);
  strokeTwice(context);
}

/**
 * @param {Context} context
 * @param {Place[][]} rings
 * @param {boolean} isOpen The last one is still being set: it goes on to the pointer.
 * @param {{x: number, y: number} | null} pointer
 */
export function drawOutline(context, rings, isOpen, pointer) {
  context.beginPath();
  for (const [index, ring] of rings.entries()) {
    ring.forEach(([x, y], corner) => (corner === 0 ? context.moveTo(x, y) : context.lineTo(x, y)));
    if (!isOpen || index !== rings.length - 1) context.closePath();
    else if (pointer) context.lineTo(pointer.x, pointer.y);
  }
  strokeTwice(context);
  context.fillStyle = "#ffffff";
  context.strokeStyle = "#000000";
  context.lineWidth = 1;
  for (const [x, y] of rings.flat()) {
    context.fillRect(x - 3, y - 3, 6, 6);
    context.strokeRect(x - 3, y - 3, 6, 6);
  }
}

/**
 * @param {Context} context @param {{x: number, y: number}} pointer
 * @param {number} radius In the canvas. @param {boolean} isEraser
 */
export function drawBrush(context, { x, y }, radius, isEraser) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.lineWidth = 1.5;
  context.strokeStyle = isEraser ? "#ff8a80" : "#ffffff";
  context.stroke();
}

/** @param {Context} context @param {{x: number, y: number}} pointer @param {HTMLCanvasElement} canvas */
export function drawCrosshair(context, { x, y }, { clientWidth, clientHeight }) {
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(clientWidth, y);
  context.moveTo(x, 0);
  context.lineTo(x, clientHeight);
  strokeTwice(context);
}

/**
 * The borders of pixels, in pixels of the image as the context is set up.
 * @param {Context} context @param {import("./view.js").Box} seen
 * @param {number} width Of a line.
 */
export function drawGrid(context, { x0, y0, x1, y1 }, width) {
  context.beginPath();
  for (let x = Math.floor(x0); x <= x1; x++) {
    context.moveTo(x, y0);
    context.lineTo(x, y1);
  }
  for (let y = Math.floor(y0); y <= y1; y++) {
    context.moveTo(x0, y);
    context.lineTo(x1, y);
  }
  context.lineWidth = width;
  context.strokeStyle = "rgb(127 127 127 / .35)";
  context.stroke();
}
