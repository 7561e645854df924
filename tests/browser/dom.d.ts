// What the browsers have and Debian's TypeScript (4.8) does not know yet.
declare class DecompressionStream {
  constructor(format: "deflate" | "deflate-raw" | "gzip");
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<BufferSource>;
}
declare class OffscreenCanvas {
  constructor(width: number, height: number);
  getContext(kind: "2d"): OffscreenCanvasRenderingContext2D | null;
}
interface OffscreenCanvasRenderingContext2D extends CanvasRenderingContext2D {}
interface ARIAMixin {
  ariaPressed: string | null;
}
interface Array<T> {
  findLast(test: (value: T, index: number) => unknown): T | undefined;
  findLastIndex(test: (value: T, index: number) => unknown): number;
  toReversed(): T[];
}
