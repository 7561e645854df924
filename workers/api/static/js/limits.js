/** What the server takes of one event: the limits of schemas/events.py and, unless it was set up otherwise, schemas/settings.py. */

export const TOO_LARGE = "That is too much for one step and was not taken: do it in smaller parts.";

export const MOST_RUN_BYTES = 65_536;
export const MOST_FRAME_BYTES = 256_000;
/** Of a frame, beside the payload: ids and times. */
const ENVELOPE_BYTES = 1000;

/**
 * @param {Record<string, any>} payload
 * @returns {boolean} Whether it is more than the server takes.
 */
export function isTooLarge(payload) {
  const runs = [payload.rle, payload.added, payload.erased].filter(Boolean);
  return runs.some(({ counts }) => counts.length > MOST_RUN_BYTES) ||
    JSON.stringify(payload).length + ENVELOPE_BYTES > MOST_FRAME_BYTES;
}
