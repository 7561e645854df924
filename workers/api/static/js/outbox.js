/** Events that no server has acknowledged yet, kept in this browser (IndexedDB): a reload or a crash loses none. */

/** @typedef {import("./fold.js").LogEvent} LogEvent */

const STORE = "pending";
/** @type {Promise<IDBDatabase> | null} */
let opening = null;

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
const settled = (request) => new Promise((done, fail) => {
  request.onsuccess = () => done(request.result);
  request.onerror = () => fail(request.error);
});

function database() {
  opening ??= (() => {
    const request = indexedDB.open("clickloop", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    return settled(request);
  })();
  return opening;
}

/** @param {string} session @returns {IDBKeyRange} All events of a session. */
const rangeOf = (session) => IDBKeyRange.bound([session], [session, []]);

/** @param {"readonly" | "readwrite"} mode */
async function store(mode) {
  return (await database()).transaction(STORE, mode).objectStore(STORE);
}

/**
 * Keep an event.
 * @param {string} session Its id.
 * @param {LogEvent} event
 * @returns {Promise<unknown>} Once it is kept.
 */
export const keep = async (session, event) => settled((await store("readwrite")).put(event, [session, event.event_id]));

/**
 * Drop an event that is acknowledged.
 * @param {string} session @param {string} eventId
 * @returns {Promise<unknown>}
 */
export const drop = async (session, eventId) => settled((await store("readwrite")).delete([session, eventId]));

/**
 * Drop all events of a session.
 * @param {string} session
 * @returns {Promise<unknown>}
 */
export const clear = async (session) => settled((await store("readwrite")).delete(rangeOf(session)));

/** @param {string} session @returns {Promise<LogEvent[]>} What is kept, in the order of seq. */
export async function kept(session) {
  const events = /** @type {LogEvent[]} */ (await settled((await store("readonly")).getAll(rangeOf(session))));
  return events.sort((a, b) => a.seq - b.seq);
}
