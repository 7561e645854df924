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

/**
 * Change what is kept.
 * @param {(store: IDBObjectStore) => IDBRequest} act
 * @returns {Promise<void>} Once it is committed: a page that is left before loses it.
 */
async function change(act) {
  const transaction = (await database()).transaction(STORE, "readwrite");
  act(transaction.objectStore(STORE));
  await new Promise((done, fail) => {
    transaction.oncomplete = done;
    transaction.onabort = () => fail(transaction.error);
  });
}

/**
 * Keep an event.
 * @param {string} session Its id.
 * @param {LogEvent} event
 * @returns {Promise<void>} Once it is kept.
 */
export const keep = (session, event) => change((store) => store.put(event, [session, event.event_id]));

/**
 * Drop an event that is acknowledged.
 * @param {string} session @param {string} eventId
 * @returns {Promise<void>}
 */
export const drop = (session, eventId) => change((store) => store.delete([session, eventId]));

/**
 * Drop all events of a session.
 * @param {string} session
 * @returns {Promise<void>}
 */
export const clear = (session) => change((store) => store.delete(rangeOf(session)));

/** @param {string} session @returns {Promise<LogEvent[]>} What is kept, in the order of seq. */
export async function kept(session) {
  const store = (await database()).transaction(STORE, "readonly").objectStore(STORE);
  const events = /** @type {LogEvent[]} */ (await settled(store.getAll(rangeOf(session))));
  return events.sort((a, b) => a.seq - b.seq);
}
