/** What somebody did on an image that they then lost or left: it can be put back when they get the image again. */

import { ApiError, getAll, patiently } from "./api.js";
import { uuid4 } from "./bytes.js";
import { desk } from "./desk.js";
import { Fold } from "./fold.js";
import * as outbox from "./outbox.js";
import { showDraft } from "./panel.js";

const KEY = "clickloop.drafts";

/** @returns {Record<string, string>} Id of that session by image. */
const known = () => JSON.parse(localStorage.getItem(KEY) ?? "{}");

/** @param {import("./session.js").Session} session That was lost, or is left. */
export function rememberDraft(session) {
  localStorage.setItem(KEY, JSON.stringify({ ...known(), [session.record.image.id]: session.id }));
}

/** @param {string} imageId */
function forgetDraft(imageId) {
  const { [imageId]: _gone, ...others } = known();
  localStorage.setItem(KEY, JSON.stringify(others));
}

/**
 * Offer what such a session on the same image held, if there was one.
 * @param {import("./session.js").Session} session The one that has the image now.
 */
export async function offerDraft(session) {
  const imageId = session.record.image.id;
  const from = known()[imageId];
  if (!from || from === session.id) return;
  let events;
  try {
    events = await patiently(() => getAll(`/api/sessions/${from}/events`));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "not_found") forgetDraft(imageId);
    return;
  }
  const last = events.at(-1)?.seq ?? 0;
  const unsent = (await outbox.kept(from).catch(() => [])).filter((event) => event.seq > last);
  const { shown } = new Fold([...events, ...unsent]);
  if (desk.session !== session) return;
  const done = () => {
    outbox.clear(from).catch(() => {});
    forgetDraft(imageId);
  };
  showDraft(shown.length, () => {
    for (const instance of shown) putBack(session, instance);
    done();
  }, done);
}

/**
 * Do again what made an object, in this session.
 * @param {import("./session.js").Session} session @param {import("./fold.js").Instance} instance
 */
function putBack(session, instance) {
  const id = uuid4();
  for (const { kind, payload } of instance.node.edits) session.add(kind, id, payload);
  if (instance.category !== null) session.add("category", id, { category: instance.category });
  if (instance.unsure) session.add("flag", id, { unsure: true });
}
