/**
 * One session: its state, and the connection that carries its events. An event is applied at once, waits until it is
 * acknowledged (over reloads of the page, too) and is sent again after every broken connection; the server tells
 * repetitions by their id. Knows no DOM.
 */

import { ApiError, PASSING, get, getAll, identity, patiently, post } from "./api.js";
import { fromRle, unpack, uuid4 } from "./bytes.js";
import { Fold } from "./fold.js";
import { TOO_LARGE } from "./limits.js";
import * as outbox from "./outbox.js";

/** @typedef {import("./fold.js").LogEvent} LogEvent */
/** @typedef {{seq: number, sha: string, mask: import("./bytes.js").Mask, scores: number[]}} Shown Scores of the candidates. */
/** @typedef {{total: number, stages: Record<string, number>}} Latency Milliseconds: from the event to its mask; on the server. */
/** @typedef {{id: string, category: number | null, isProposal: boolean, sha: string, mask: import("./bytes.js").Mask}} Standing */
/** @typedef {{id: string, mask: Standing}} Proposal Id of the object that was opened from it, else of the mask. */
/**
 * What a session tells the page.
 * @typedef {object} Listener
 * @property {() => void} changed Anything that is drawn.
 * @property {(level: "info" | "error", text: string) => void} note
 * @property {(instanceId: string, shown: Shown, before: Shown | undefined, latency: Latency | null) => void} mask
 * @property {(kind: string) => void} ended By its own submit, skip or release, once that is durable.
 * @property {() => void} reloaded
 * @property {(why: string) => void} unauthorized
 */

const ACK_MS = 20_000;
const MASK_KINDS = new Set(["open", "click", "box", "brush", "mask_edit", "candidate", "undo", "redo"]);
const SESSION_KINDS = new Set(["submit", "skip", "release"]);
/** Refusals that another name or token may mend. */
const WHO = new Set(["unauthorized", "forbidden"]);
/** With this code the server closes a connection over a frame that is too big. */
const TOO_BIG = 1009;

/** What the page says where the server's own words would not help. */
const SAYINGS = /** @type {Record<string, string>} */ ({
  conflict: "The server has other events than this page. The page now shows the server's state.",
  gap: "The server misses an event of this page. The page now shows the server's state.",
  stale_preview: "The mask has changed since it was shown. Look at it and accept again.",
  undo_mismatch: "That was undone already. The page now shows the server's state.",
  unauthorized: "The server does not accept this token.",
});
const GONE = "This image was removed from the server, and what was done on it with it.";

/** @type {Listener} Of a session that was left: what still comes of it is for nobody. */
const NOBODY = { changed() {}, note() {}, mask() {}, ended() {}, reloaded() {}, unauthorized() {} };

export class Session {
  /** @type {WebSocket | null} */
  #socket = null;
  #ready = false;
  #closed = false;
  #pause = 500;
  /** @type {string | null} Id of the event that waits for its ack on this connection. */
  #sent = null;
  #watchdog = 0;
  #retry = 0;
  /** @type {Map<number, number>} When the event of a seq was made. */
  #begun = new Map();
  /** @type {Map<string, object>} What asks last for the mask of an object: what asked before gives up. */
  #asking = new Map();
  #warned = false;
  /** Whether the page says that an event is not saved yet. */
  #isRefused = false;

  /**
   * @param {any} record As GET /api/sessions/{id} gives it.
   * @param {LogEvent[]} events
   * @param {LogEvent[]} kept What this browser kept of it, see `outbox`.
   * @param {Listener} listener
   */
  constructor(record, events, kept, listener) {
    this.listener = listener;
    this.id = /** @type {string} */ (record.id);
    this.epoch = /** @type {number} */ (record.epoch);
    /** @type {LogEvent[]} */
    this.pending = [];
    /** How many of these this browser has yet to keep: a reload would lose them. */
    this.unkept = 0;
    /** @type {Map<string, Shown>} */
    this.masks = new Map();
    /** @type {Map<string, Standing>} Masks of the image from before this session, by id. */
    this.earlier = new Map();
    this.mode = /** @type {"live" | "loading" | "readonly" | "lost" | "gone" | "ended"} */ ("loading");
    /** Why it is gone: there is nothing to go on with. */
    this.why = "";
    /** @type {any} */
    this.record = record;
    this.leaseNo = this.lastSeq = 0;
    this.fold = new Fold([]);
    this.#take(record, events);
    this.#restore(events, kept);
  }

  /**
   * @param {string} id
   * @param {boolean} takeOver Raise the epoch: this page writes from now on, older ones turn read-only.
   * @param {Listener} listener
   */
  static async load(id, takeOver, listener) {
    let record = await get(`/api/sessions/${id}`);
    if (takeOver && record.state === "open") record = await post(`/api/sessions/${id}/open`);
    const events = await getAll(`/api/sessions/${id}/events`);
    return new Session(record, events, await outbox.kept(id).catch(() => []), listener);
  }

  /** Whether it takes events now. */
  get isLive() { return this.mode === "live" && !this.#isEnding; }
  /** Whether its own submit, skip or release is on the way: what came behind that would not count. */
  get #isEnding() { return this.pending.some(({ kind }) => SESSION_KINDS.has(kind)); }
  /** In words why it takes no events for the moment; empty where it does, or where it will not again. */
  get obstacle() {
    if (this.mode === "loading") return "The server's state is on its way: do that again in a moment.";
    if (this.mode === "ended") return "You are done with this image: what comes next is on its way.";
    return this.mode === "live" && this.#isEnding ? "You are done with this image: nothing is added to it while the server has yet to answer." : "";
  }
  get online() { return this.#ready; }

  /**
   * @param {import("./fold.js").Instance} instance
   * @returns {boolean} Whether the mask of its last edit has yet to come.
   */
  isBehind(instance) { return (this.masks.get(instance.id)?.seq ?? 0) < instance.maskSeq; }

  /** Connect, and fetch the masks of what is there already. */
  start() {
    if (this.mode !== "live") return;
    this.#connect();
    this.#fetchEarlier();
    this.#fetchAccepted().finally(() => this.#fetchMissing());
  }

  /**
   * What stands of `earlier`: this session opened none of its objects from it.
   * @returns {Standing[]}
   */
  get standing() {
    if (this.earlier.size === 0) return [];
    const opened = new Set([...this.fold.instances.values()].map((instance) => instance.from));
    return [...this.earlier.values()].filter(({ id }) => !opened.has(id));
  }

  /**
   * Proposals that nobody has decided on: those that stand, and objects that were opened from one and taken back.
   * @returns {Proposal[]}
   */
  get proposals() {
    const opened = this.fold.shown.filter(({ untouched }) => untouched).flatMap(({ id, from }) => {
      const mask = this.earlier.get(from ?? "");
      return mask ? [{ id, mask }] : [];
    });
    return [...opened, ...this.standing.map((mask) => ({ id: mask.id, mask }))].filter(({ mask }) => mask.isProposal);
  }

  /** Leave the session as it is. */
  close() {
    this.listener = NOBODY;
    this.#stop();
  }

  #stop() {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#drop();
  }

  /** Try to connect now rather than at the end of the pause. */
  hurry() {
    if (this.mode !== "live" || this.#socket || this.#closed) return;
    clearTimeout(this.#retry);
    this.#connect();
  }

  /** Connect anew: the network went away, and a connection that it took along would be silent for long. */
  doubt() {
    if (this.#socket) this.#broken();
  }

  /**
   * Make an event: it holds at once here, and is sent until it is acknowledged. Does nothing while it is not live.
   * @param {string} kind
   * @param {string | null} instanceId
   * @param {Record<string, any>} [payload]
   */
  add(kind, instanceId, payload = {}) {
    if (!this.isLive) return;
    const event = {
      event_id: uuid4(), seq: this.lastSeq + this.pending.length + 1, lease_no: this.leaseNo,
      instance_id: instanceId, kind, payload, client_time: new Date().toISOString(),
    };
    this.#begun.set(event.seq, performance.now());
    this.fold.apply(event);
    this.pending.push(event);
    this.unkept += 1;
    outbox.keep(this.id, event).catch(() => this.#warn()).finally(() => {
      this.unkept -= 1;
      if (!this.unkept) this.listener.changed();
    });
    this.#pump();
    this.listener.changed();
  }

  /** Take the server's state, dropping what it has not acknowledged. */
  async reload() {
    this.mode = "loading";
    this.listener.changed();
    try {
      const [record, events] = await this.#patiently(() =>
        Promise.all([get(`/api/sessions/${this.id}`), getAll(`/api/sessions/${this.id}/events`)]));
      if (this.#closed) return;
      const stale = record.epoch > this.epoch;
      this.pending = [];
      if (!stale) outbox.clear(this.id).catch(() => {});
      this.#take(record, events);
      if (stale && this.isLive) this.mode = "readonly";
    } catch (error) {
      if (!(error instanceof ApiError) || WHO.has(error.code) || this.#closed) this.#fail(error);
      else this.#leave(error);
      return;
    }
    this.listener.reloaded();
    if (!this.isLive) return;
    if (!this.#socket) this.#connect();
    this.#fetchAccepted().finally(() => this.#fetchMissing());
  }

  /** @param {ApiError} error For which there is nothing to go on with. */
  #leave(error) {
    const isRemoved = error.code === "not_found";
    if (isRemoved) {
      this.pending = [];
      outbox.clear(this.id).catch(() => {});
    }
    this.why = isRemoved ? GONE : error.message;
    this.#turn("gone");
  }

  /** @param {any} record @param {LogEvent[]} events */
  #take(record, events) {
    this.record = record;
    this.leaseNo = /** @type {number} */ (record.lease_no);
    this.lastSeq = events.at(-1)?.seq ?? 0;
    this.fold = new Fold(events);
    this.mode = record.state === "open" ? "live" : record.state === "lost" ? "lost" : "ended";
  }

  /**
   * Events that an earlier life of this page had not seen acknowledged; those of a lost session stay, as a draft.
   * @param {LogEvent[]} events @param {LogEvent[]} kept
   */
  #restore(events, kept) {
    const known = new Set(events.map((event) => event.event_id));
    const waiting = kept.filter((event) => !known.has(event.event_id));
    for (const event of kept) if (known.has(event.event_id)) outbox.drop(this.id, event.event_id).catch(() => {});
    if (this.mode !== "live") return;
    const fits = waiting.every((event, i) => event.seq === this.lastSeq + 1 + i && event.lease_no === this.leaseNo);
    if (!fits) {
      outbox.clear(this.id).catch(() => {});
      return;
    }
    this.pending = waiting;
    for (const event of waiting) this.fold.apply(event);
  }

  /** Say once that unsent events would not outlive a reload. */
  #warn() {
    if (!this.#warned) this.listener.note("error", "This browser keeps nothing for this page: stay until everything is saved.");
    this.#warned = true;
  }

  #connect() {
    const url = new URL(`/api/sessions/${this.id}/ws`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.#socket = socket;
    this.#watch();
    socket.onopen = () => socket.send(JSON.stringify({
      type: "hello", epoch: this.epoch, token: identity.token || null, annotator: identity.name || null,
    }));
    socket.onmessage = ({ data }) => {
      const message = parse(data);
      if (message) this.#receive(message);
      else this.#broken();
    };
    socket.onclose = ({ code }) => this.#closedWith(code);
  }

  /** @param {number} code */
  #closedWith(code) {
    const isRefusal = code === TOO_BIG && this.#sent !== null;
    if (!isRefusal) {
      this.#broken();
      return;
    }
    this.#drop();
    this.#refused({ code: "too_large", message: TOO_LARGE });
  }

  /** Give a silent connection up: it may be half-open. */
  #watch() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#broken(), ACK_MS);
  }

  #drop() {
    clearTimeout(this.#watchdog);
    if (this.#socket) {
      this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
      this.#socket.close();
    }
    this.#socket = null;
    this.#ready = false;
    this.#sent = null;
  }

  #broken() {
    this.#drop();
    if (this.#closed || this.mode === "ended") return;
    this.#retry = setTimeout(() => this.hurry(), this.#pause * (0.75 + Math.random() / 2));
    this.#pause = Math.min(this.#pause * 2, 8000);
    this.listener.changed();
  }

  #pump() {
    if (!this.#ready || !this.#socket || this.#sent || this.pending.length === 0 || this.mode !== "live") return;
    const event = this.pending[0];
    this.#sent = event.event_id;
    const isEmpty = event.kind === "open" && !event.payload.mask_id;
    const mask = MASK_KINDS.has(event.kind) && !isEmpty ? "bits" : "none";
    this.#socket.send(JSON.stringify({ type: "event", mask, event: { ...event, session_epoch: this.epoch } }));
    this.#watch();
  }

  /** @param {any} message */
  #receive(message) {
    if (message.type === "welcome") this.#welcome(message);
    else if (message.type === "ack" && message.event_id === this.#sent) this.#acknowledged();
    else if (message.type === "mask") this.#show(message);
    else if (message.type === "mask_error") this.#fetch(message.instance_id);
    else if (message.type === "superseded") this.#turn("readonly");
    else if (message.type === "error" && (message.event_id ?? this.#sent) === this.#sent) this.#refused(message.error);
  }

  /** @param {any} message */
  #welcome(message) {
    clearTimeout(this.#watchdog);
    this.#ready = true;
    if (this.pending.length === 0) this.#pause = 500;
    if (message.session.epoch > this.epoch) this.#turn("readonly");
    else if (message.durable_seq > this.lastSeq + this.pending.length) this.reload();
    else {
      this.#pump();
      this.#fetchMissing();
      this.listener.changed();
    }
  }

  #acknowledged() {
    clearTimeout(this.#watchdog);
    const event = /** @type {LogEvent} */ (this.pending.shift());
    this.#sent = null;
    this.#pause = 500;
    if (this.#isRefused) this.listener.note("info", "");
    this.#isRefused = false;
    this.lastSeq = event.seq;
    outbox.drop(this.id, event.event_id).catch(() => {});
    if (SESSION_KINDS.has(event.kind)) {
      outbox.clear(this.id).catch(() => {});
      this.mode = "ended";
      this.#stop();
      this.listener.ended(event.kind);
      return;
    }
    this.#pump();
    this.listener.changed();
  }

  /** @param {{code: string, message: string}} error */
  #refused(error) {
    clearTimeout(this.#watchdog);
    if (PASSING.has(error.code)) {
      this.#isRefused = true;
      this.listener.note("error", `Not saved yet: ${error.message}`);
      this.#broken();
    } else if (WHO.has(error.code)) {
      this.#drop();
      this.listener.unauthorized(SAYINGS[error.code] ?? error.message);
    } else if (error.code === "stale_epoch" || error.code === "lease_lost") {
      this.#turn(error.code === "stale_epoch" ? "readonly" : "lost");
    } else {
      const lost = this.pending.length > 1 ? ` ${this.pending.length} actions were not saved.` : "";
      this.listener.note("error", (SAYINGS[error.code] ?? error.message) + lost);
      if (error.code === "stale_preview") this.masks.clear();
      this.#sent = null;
      this.reload();
    }
  }

  /** @param {"readonly" | "lost" | "gone"} mode */
  #turn(mode) {
    this.mode = mode;
    this.#drop();
    this.listener.changed();
  }

  /** @param {any} reply A mask as the server sends it. */
  async #show(reply) {
    const mask = reply.bits ? await unpack(reply.bits) : fromRle(reply.rle, reply.box_xywh);
    const instance = this.fold.instances.get(reply.instance_id);
    const before = this.masks.get(reply.instance_id);
    const shown = { seq: reply.seq, sha: reply.mask_sha256, mask, scores: reply.scores ?? [] };
    if (!instance || shown.seq < (before?.seq ?? 0)) return;
    this.masks.set(instance.id, shown);
    const begun = this.#begun.get(reply.seq);
    this.#begun.delete(reply.seq);
    const latency = begun === undefined ? null : { total: performance.now() - begun, stages: reply.latency_ms ?? {} };
    this.listener.mask(instance.id, shown, before, latency);
  }

  async #fetchEarlier() {
    try {
      for (const found of await this.#patiently(() => getAll(`/api/sessions/${this.id}/standing`))) {
        const { mask_id, category, is_proposal: isProposal, mask_sha256, rle, box_xywh } = found;
        this.earlier.set(mask_id, { id: mask_id, category, isProposal, sha: mask_sha256, mask: fromRle(rle, box_xywh) });
      }
      if (this.earlier.size > 0) this.listener.changed();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Masks that were accepted and not changed since: stored ones, many in a call. */
  async #fetchAccepted() {
    if (!this.fold.shown.some((instance) => instance.accepted && this.isBehind(instance))) return;
    try {
      for (const reply of await this.#patiently(() => getAll(`/api/sessions/${this.id}/masks`))) await this.#show(reply);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Masks of acknowledged edits that never came: the page or the connection was new. */
  #fetchMissing() {
    const waiting = new Set(this.pending.map((event) => event.instance_id));
    for (const instance of this.fold.shown) {
      if (this.isBehind(instance) && !waiting.has(instance.id)) this.#fetch(instance.id);
    }
  }

  /** @param {string} instanceId */
  async #fetch(instanceId) {
    const path = `/api/sessions/${this.id}/instances/${instanceId}/mask?format=bits`;
    const mine = {};
    this.#asking.set(instanceId, mine);
    try {
      const waiting = (/** @type {ApiError} */ error) => this.listener.note("info", `The mask has to wait: ${error.message}`);
      await this.#show(await this.#patiently(() => get(path), waiting, () => this.#asking.get(instanceId) === mine));
    } catch (error) {
      this.#fail(error);
    }
  }

  /**
   * Repeat a call while the server is away or busy; one that is over meanwhile, as all are when the session is left, fails.
   * @template T
   * @param {() => Promise<T>} attempt @param {(error: ApiError) => void} [onWait] @param {() => boolean} [isWanted]
   * @returns {Promise<T>}
   */
  #patiently(attempt, onWait, isWanted = () => true) {
    return patiently(async () => {
      if (this.#closed || !isWanted()) throw new ApiError("over", "");
      return attempt();
    }, onWait);
  }

  /** @param {unknown} error */
  #fail(error) {
    if (!(error instanceof ApiError)) throw error;
    if (this.#closed || error.code === "over") return;
    if (WHO.has(error.code)) this.listener.unauthorized(SAYINGS[error.code] ?? error.message);
    else this.listener.note("error", error.message);
  }
}

/**
 * @param {unknown} frame
 * @returns {Record<string, any> | null} What it says; null: it is no JSON object, and so is the connection none of ours.
 */
function parse(frame) {
  try {
    const message = JSON.parse(String(frame));
    return typeof message === "object" ? message : null;
  } catch {
    return null;
  }
}
