/**
 * A session's state as a fold over its events: the server's rules (pipeline/sessions/fold.py), as far as the page shows
 * them. It runs ahead of the acknowledgements and is rebuilt from the log when one is refused.
 */

/**
 * @typedef {{event_id: string, seq: number, lease_no: number, instance_id: string | null, kind: string,
 *   payload: Record<string, any>}} LogEvent
 * @typedef {{kind: string, payload: Record<string, any>}} Edit
 * @typedef {{eventId: string, seq: number, kind: string, before: Node | null, edits: readonly Edit[], category: number | null,
 *   unsure: boolean, accepted: {seq: number, edits: readonly Edit[]} | null, deleted: boolean}} Node
 */

const EDITS = new Set(["open", "click", "box", "brush", "mask_edit", "candidate"]);
/** After these the first candidate is shown. */
const PREDICTIONS = new Set(["open", "click", "box"]);

/** One object. */
export class Instance {
  /** @param {LogEvent} event Its `open`. @param {number} order How many were opened before it. */
  constructor(event, order) {
    this.order = order;
    this.id = /** @type {string} */ (event.instance_id);
    /** @type {Node} */
    this.node = {
      eventId: event.event_id, seq: event.seq, kind: "open", before: null, edits: [event], category: null, unsure: false,
      accepted: null, deleted: false,
    };
    /** @type {{undoId: string, seq: number, node: Node}[]} Seq of the undo. */
    this.undone = [];
    this.history = new Map([[event.seq, this.node.edits]]);
    /** Category of the stored mask that it was opened from: the first event repeats it. */
    this.fromCategory = /** @type {number | null} */ (null);
    /** Seq of the newest event that changed the mask. */
    this.maskSeq = event.seq;
  }

  get category() { return this.node.category; }
  get unsure() { return this.node.unsure; }
  get deleted() { return this.node.deleted; }
  get accepted() { return this.node.accepted !== null; }
  /** Whether what stands is not (yet) what was accepted. */
  get dirty() { return this.node.accepted?.edits !== this.node.edits && !this.untouched; }
  /** Id of the stored mask that it was opened from. */
  get from() { return /** @type {string | null} */ (this.node.edits[0].payload.mask_id ?? null); }
  /** Whether it is still the stored mask that it was opened from, which stands without it. */
  get untouched() {
    const { edits, category, unsure, accepted } = this.node;
    return this.from !== null && accepted === null && edits.length === 1 && !unsure && (category === null || category === this.fromCategory);
  }

  get empty() { return this.node.edits.length === 1 && this.from === null; }
  /** Id of the event that an undo must name. */
  get top() { return this.node.before ? this.node.eventId : null; }
  /** Whether there is something to undo that would be seen: a stored mask that was only opened stands as it was. */
  get hasStep() { return this.top !== null && (this.deleted || !this.untouched); }
  /** Id of the undo that a redo must name. */
  get redoTop() { return this.undone.at(-1)?.undoId ?? null; }
  get clicks() { return this.#payloads("click"); }
  get boxes() { return this.#payloads("box"); }
  get strokes() { return this.#payloads("brush"); }
  get outlines() { return this.#payloads("mask_edit").filter(({ tool }) => tool === "polygon"); }
  /** Index of the candidate that is shown. */
  get candidate() {
    const edit = this.node.edits.filter(({ kind }) => kind === "candidate" || PREDICTIONS.has(kind)).at(-1);
    return edit?.kind === "candidate" ? /** @type {number} */ (edit.payload.index) : 0;
  }

  /** @param {string} kind @returns {Record<string, any>[]} */
  #payloads(kind) { return this.node.edits.filter((edit) => edit.kind === kind).map((edit) => edit.payload); }

  /** @param {LogEvent} event */
  apply(event) {
    const before = this.node;
    if (event.kind === "category" && this.history.size === 1) this.fromCategory = event.payload.category;
    if (event.kind === "undo" && before.before) {
      this.undone.push({ undoId: event.event_id, seq: event.seq, node: before });
      this.node = before.before;
    } else if (event.kind === "redo" && this.undone.length > 0) {
      this.node = /** @type {{node: Node}} */ (this.undone.pop()).node;
    } else {
      this.undone = [];
      this.node = this.#step(before, event);
    }
    this.history.set(event.seq, this.node.edits);
    if (this.node.edits !== before.edits) this.maskSeq = event.seq;
  }

  /** @param {Node} before @param {LogEvent} event @returns {Node} */
  #step(before, event) {
    const { kind, payload } = event;
    const node = { ...before, before, eventId: event.event_id, seq: event.seq, kind };
    if (EDITS.has(kind)) node.edits = [...before.edits, event];
    if (kind === "category") node.category = payload.category;
    if (kind === "flag") node.unsure = payload.unsure;
    if (kind === "delete") node.deleted = true;
    if (kind === "accept") {
      node.accepted = { seq: payload.seq, edits: this.history.get(payload.seq) ?? before.edits };
      node.category = payload.category ?? before.category;
    }
    return node;
  }
}

/** All objects of a session, in the order they were opened. */
export class Fold {
  /** @param {LogEvent[]} events */
  constructor(events) {
    /** @type {Map<string, Instance>} */
    this.instances = new Map();
    /** @type {string | null} Whose event was the newest. */
    this.recent = null;
    /** Seq of the newest event that is no undo and no redo. */
    this.doneSeq = 0;
    for (const event of events) this.apply(event);
  }

  /** @param {LogEvent} event */
  apply(event) {
    if (event.instance_id === null) return;
    this.recent = event.instance_id;
    if (event.kind !== "undo" && event.kind !== "redo") this.doneSeq = event.seq;
    if (event.kind === "open") this.instances.set(event.instance_id, new Instance(event, this.instances.size));
    else this.instances.get(event.instance_id)?.apply(event);
  }

  /** The object whose step was the last of those that stand. */
  get undoable() { return newest(this.instances, (instance) => (instance.hasStep ? instance.node.seq : 0)); }

  /** The object whose step was undone last; none once something was done after that. */
  get redoable() { return newest(this.instances, ({ undone }) => Math.max((undone.at(-1)?.seq ?? 0) - this.doneSeq, 0)); }

  /** Objects that are there to be seen. */
  get shown() { return [...this.instances.values()].filter((instance) => !instance.deleted && !instance.empty); }
}

/**
 * @param {Map<string, Instance>} instances
 * @param {(instance: Instance) => number} rank 0: not this one.
 * @returns {Instance | undefined} The one with the highest rank.
 */
function newest(instances, rank) {
  let [found, highest] = [/** @type {Instance | undefined} */ (undefined), 0];
  for (const instance of instances.values()) if (rank(instance) > highest) [found, highest] = [instance, rank(instance)];
  return found;
}
