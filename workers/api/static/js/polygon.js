/**
 * An outline in the making: corners are set, dragged, put in between and taken out, until it becomes the object's mask.
 * In pixels of the image; `reach` says how near a pointer has to come. Knows no canvas and no session.
 */

import { distanceTo, fill, simplify, trace } from "./contour.js";

/** @typedef {import("./contour.js").Point} Point */

export class Polygon {
  /** @type {Point[][]} What `simplify` starts from. */
  #full;
  /** @type {{ring: number, index: number} | null} The corner that the pointer holds. */
  #held = null;
  /** @type {{rings: Point[][], isOpen: boolean}} As it was before the pointer went down. */
  #before = { rings: [], isOpen: false };

  /** @param {import("./bytes.js").Mask | null} mask To start from; null: nothing yet. @param {number} tolerance See `simplify`. */
  constructor(mask, tolerance) {
    this.#full = mask ? trace(mask) : [];
    this.isNew = this.#full.length === 0;
    /** Whether the last ring is still being set, corner by corner. */
    this.isOpen = false;
    /** @type {Point[][]} */
    this.rings = [];
    this.simplify(tolerance);
  }

  get size() { return this.rings.reduce((sum, ring) => sum + ring.length, 0); }

  /**
   * Fewer corners, starting from the mask or from what was last changed by hand.
   * @param {number} tolerance In pixels.
   */
  simplify(tolerance) {
    if (this.isOpen) return;
    this.rings = this.#full.map((ring) => simplify(ring, tolerance)).filter((ring) => ring.length > 2);
  }

  /**
   * The pointer goes down.
   * @param {Point} point
   * @param {number} reach
   * @param {boolean} removes Take the corner out instead.
   */
  press(point, reach, removes) {
    this.#before = { rings: this.rings.map((ring) => [...ring]), isOpen: this.isOpen };
    if (this.isOpen) {
      const ring = this.rings[this.rings.length - 1];
      if (removes) this.back();
      else if (ring.length > 2 && near(ring[0], point, reach)) this.close();
      else this.#held = { ring: this.rings.length - 1, index: ring.push(point) - 1 };
      return;
    }
    const corner = this.#corner(point, reach);
    if (removes) {
      if (corner) this.#remove(corner);
      return;
    }
    this.#held = corner ?? this.#between(point, reach) ?? this.#begin(point);
  }

  /**
   * The pointer moves.
   * @param {Point} point
   * @returns {boolean} Whether something moved with it.
   */
  move(point) {
    if (!this.#held) return false;
    this.rings[this.#held.ring][this.#held.index] = point;
    return true;
  }

  /** The pointer goes up. */
  release() {
    this.#held = null;
    if (!this.isOpen) this.#keep();
  }

  /** What the pointer holds is as it was: it is the first finger of two. */
  drop() {
    if (this.#held) Object.assign(this, this.#before);
    this.#held = null;
  }

  /** Take back the corner that was set last. */
  back() {
    if (!this.isOpen) return;
    const ring = this.rings[this.rings.length - 1];
    ring.pop();
    if (ring.length === 0) this.close();
  }

  /** End the ring that is being set; one that encloses nothing is dropped. */
  close() {
    if (!this.isOpen) return;
    if (this.rings[this.rings.length - 1].length < 3) this.rings.pop();
    this.isOpen = false;
    this.#keep();
  }

  /** @param {number} width Of the image. @param {number} height @returns {import("./bytes.js").Mask} */
  mask(width, height) { return fill(this.rings, width, height); }

  #keep() { this.#full = this.rings.map((ring) => [...ring]); }

  /** @param {Point} point @param {number} reach */
  #corner(point, reach) {
    for (const [ring, corners] of this.rings.entries()) {
      const index = corners.findIndex((corner) => near(corner, point, reach));
      if (index >= 0) return { ring, index };
    }
    return null;
  }

  /**
   * A new corner on the side that the pointer is at.
   * @param {Point} point @param {number} reach
   */
  #between(point, reach) {
    for (const [ring, corners] of this.rings.entries()) {
      const index = corners.findIndex((corner, i) => distanceTo(point, corner, corners[(i + 1) % corners.length]) <= reach);
      if (index < 0) continue;
      corners.splice(index + 1, 0, point);
      return { ring, index: index + 1 };
    }
    return null;
  }

  /** @param {Point} point */
  #begin(point) {
    this.isOpen = true;
    return { ring: this.rings.push([point]) - 1, index: 0 };
  }

  /** @param {{ring: number, index: number}} corner */
  #remove({ ring, index }) {
    this.rings[ring].splice(index, 1);
    if (this.rings[ring].length < 3) this.rings.splice(ring, 1);
  }
}

/** @param {Point} a @param {Point} b @param {number} reach */
const near = ([ax, ay], [bx, by], reach) => Math.hypot(ax - bx, ay - by) <= reach;
