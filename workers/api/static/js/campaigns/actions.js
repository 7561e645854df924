/** What can be asked of a campaign: each with its question. Every request has an id of ours, so that asking twice is safe. */

import { get, getAll, identity, post } from "../api.js";
import { uuid4 } from "../bytes.js";
import { ask } from "./ask.js";

/** @typedef {any} Campaign As GET /api/campaigns/{id} gives it. */

/** @param {Campaign} campaign */
const base = (campaign) => `/api/campaigns/${encodeURIComponent(campaign.id)}`;

/**
 * Leave out what was not filled in.
 * @param {Record<string, any>} values
 */
const given = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== "" && value !== undefined));

/**
 * @param {Campaign} campaign @param {string} kind Of the job.
 * @param {Omit<Parameters<typeof ask>[0], "run">} question
 * @param {(answers: Record<string, any>) => object} [payload] What the job is told.
 */
function askForJob(campaign, kind, question, payload = given) {
  const id = uuid4();
  return ask({ ...question, run: (answers) => post(`${base(campaign)}/requests`, { id, kind, payload: payload(answers) }) });
}

export function createCampaign() {
  const id = uuid4();
  return ask({
    title: "New campaign",
    text: "Its images are read and registered by a job; you can follow it on this page.",
    fields: [
      { name: "name", label: "Name", kind: "text", required: true, limits: { maxlength: 200 } },
      { name: "images", label: "Images", kind: "text", required: true, limits: { maxlength: 4000 }, hint: "A folder, a pattern or a URL such as s3://bucket/photos, as the server sees it." },
      { name: "labels", label: "Labels", kind: "lines", hint: "One per line; more can follow with annotations.", limits: { rows: 4 } },
      { name: "annotations", label: "Annotations to import", kind: "text", hint: "A COCO file; leave empty for none." },
      { name: "model", label: "Model", kind: "text", value: "default", required: true, limits: { maxlength: 100 } },
      { name: "checkpoint", label: "Its weights", kind: "text", hint: "A .safetensors file on the server; leave empty for those that ship." },
      { name: "holdout_fraction", label: "Share held out for evaluation", kind: "number", value: "0.2", required: true, limits: { min: 0, max: 0.9 } },
      { name: "retrain_every_masks", label: "Retrain after so many masks", kind: "number", value: "0", required: true, limits: { min: 0, step: 1 }, hint: "0: only when asked." },
    ],
    go: "Create campaign",
    run: ({ holdout_fraction, retrain_every_masks, ...rest }) =>
      post("/api/campaigns", { id, ...given(rest), settings: { holdout_fraction, retrain_every_masks } }),
  });
}

/** @param {Campaign} campaign */
export function precompute(campaign) {
  return askForJob(campaign, "precompute", {
    title: "Precompute embeddings?",
    text: "Every image that is not encoded yet is, so that the first click on it is quick. Labeling goes on meanwhile.",
    go: "Precompute",
  });
}

/** @param {Campaign} campaign */
export function readImages(campaign) {
  return askForJob(campaign, "ingest", {
    title: "Read the images again?",
    text: "New and changed files are registered, and files that are gone are named. Nothing is copied.",
    fields: [{ name: "images", label: "Images", kind: "text", limits: { maxlength: 4000 }, hint: `A folder, a pattern or a URL, as the server sees it; leave empty for ${campaign.source_url}.` }],
    go: "Read images",
  });
}

/** @param {Campaign} campaign */
export function importMasks(campaign) {
  return askForJob(campaign, "import", {
    title: "Import masks",
    text: "Annotations of other tools on this campaign's images. Look first: the job then says what it would take and drop.",
    fields: [
      { name: "source", label: "Where from", kind: "text", required: true, limits: { maxlength: 4000 }, hint: "A file, folder or URL, as the server sees it." },
      { name: "format", label: "Format", kind: "select", choices: [
        ["", "by what is there"], ["coco", "COCO, LVIS"], ["coco-results", "COCO results, by the ids of an export of this campaign"], ["label-studio", "Label Studio"], ["cvat", "CVAT"],
        ["yolo-seg", "YOLO segmentation"], ["label-map", "PNG: a category per value"], ["instance-map", "PNG: an instance per value"]] },
      { name: "min_score", label: "Lowest score", kind: "number", limits: { min: 0, max: 1 }, hint: "Of COCO results only. Leave empty for all." },
      { name: "as", label: "What for", kind: "select", choices: [
        ["look", "only look: count and compare, store nothing"], ["propose", "as proposals that annotators accept or correct"], ["trust", "as accepted masks"]] },
    ],
    go: "Import",
  }, ({ as, ...rest }) => ({ ...given(rest), look: as === "look", trusted: as === "trust" }));
}

/** @param {Campaign} campaign */
export function prelabel(campaign) {
  return askForJob(campaign, "prelabel", {
    title: "Let the model propose masks?",
    text: "It clicks new images by itself on a grid; annotators then accept, correct or leave what it found.",
    fields: [
      { name: "grid", label: "Clicks per side of the grid", kind: "number", value: "8", required: true, limits: { min: 1, max: 32, step: 1 } },
      { name: "min_score", label: "Lowest score to propose", kind: "number", value: "0.5", required: true, limits: { min: 0, max: 1 }, hint: "The IoU that the model expects, 0 to 1." },
      { name: "limit", label: "At most so many images", kind: "number", limits: { min: 1, step: 1 }, hint: "Leave empty for all new ones." },
    ],
    go: "Prelabel",
  });
}

/** @param {Campaign} campaign */
export function propose(campaign) {
  return askForJob(campaign, "propose", {
    title: "Propose the masks of look-alikes?",
    text: "The accepted masks of an image become proposals on its near-duplicates.",
    go: "Propose",
  });
}

/** @param {Campaign} campaign */
export function order(campaign) {
  return askForJob(campaign, "order", {
    title: "Order the new images",
    text: "In which order those that nobody began are given out.",
    fields: [{ name: "by", label: "By", kind: "select", choices: [
      ["mixed", "mixed: uncertainty and diversity"], ["uncertainty", "uncertainty of an automatic first click"],
      ["diversity", "diversity: unlike those before"], ["gain", "gain expected per second of work"], ["plain", "plain: as they were read"]] }],
    go: "Order",
  });
}

/** @param {Campaign} campaign */
export function retrain(campaign) {
  return askForJob(campaign, "retrain", {
    title: "Retrain on the accepted masks?",
    text: "An adapter is trained on the training images and compared with the live one on those held out. It goes live only if the gate agrees.",
    fields: [
      { name: "adapter", label: "Kind of adapter", kind: "select", choices: [
        ["", "by model and number of masks"], ["head", "head: the last layers"], ["affine", "affine: scales and shifts"], ["lora", "lora: low-rank updates"],
        ["clickadapter", "clickadapter: detail adapters"], ["full", "full: every weight"]] },
      { name: "promote", label: "If the gate agrees", kind: "select", choices: [["auto", "let it go live"], ["never", "only tell me"]] },
      { name: "minutes", label: "At most so many minutes", kind: "number", limits: { min: 0.1 }, hint: "Leave empty for the usual length." },
    ],
    go: "Retrain",
  });
}

/** @param {Campaign} campaign */
export function exportMasks(campaign) {
  return askForJob(campaign, "export", {
    title: "Export the current masks?",
    text: "A snapshot of what is accepted now is written; later work does not change it.",
    fields: [
      { name: "formats", label: "Formats", kind: "checks", choices: [["coco", "COCO JSON", true], ["parquet", "Parquet, with images and clicks", true], ["png", "One PNG per mask"],
        ["lvis", "LVIS JSON"], ["yolo-seg", "YOLO segmentation: outlines, which lose some pixels"], ["hf", "Hugging Face data set with a card"]] },
      { name: "images", label: "Image files", kind: "select", choices: [["embedded", "copied into the export"], ["uri", "only named"]] },
      { name: "categories", label: "Only these categories", kind: "lines", limits: { rows: 2 }, hint: "One per line. Leave empty for all." },
      { name: "sure", label: "Masks that the annotator flagged as unsure", kind: "select", choices: [["", "are exported, too"], ["sure", "are left out"]] },
      { name: "min_score", label: "Lowest score", kind: "number", limits: { min: 0, max: 1 }, hint: "The IoU that the model expects, 0 to 1; masks that no model made have none and stay. Leave empty for all." },
      { name: "val", label: "Share to validate on", kind: "number", value: "0", required: true, limits: { min: 0, max: 0.99 } },
      { name: "test", label: "Share to test on", kind: "number", value: "0", required: true, limits: { min: 0, max: 0.99 } },
      { name: "since_snapshot", label: "Only what changed since snapshot", kind: "text", limits: { maxlength: 40 }, hint: "Its number; COCO and Parquet only. Leave empty for everything." },
      { name: "to", label: "Where to", kind: "text", hint: "A folder or URL that the server may write to; leave empty for its storage, from where it can be downloaded here." },
    ],
    go: "Export",
  }, ({ categories, sure, ...rest }) => ({ ...given(rest), ...(categories.length && { categories }), ...(sure && { sure: true }) }));
}

/** @param {Campaign} campaign */
export function rollBack(campaign) {
  return ask({
    title: "Roll back the live adapter?",
    text: "What was live before the last promotion (or the bare model) becomes live again for objects begun from now on. Accepted masks stay as they are.",
    go: "Roll back",
    grave: true,
    run: () => post(`${base(campaign)}/rollback`, { expected_version: campaign.live_version }),
  });
}

/** @param {Campaign} campaign @param {{digest: string, number: number}} adapter */
export function promote(campaign, adapter) {
  return ask({
    title: `Let adapter ${adapter.number} go live?`,
    text: "Objects begun from now on are computed with it; open ones finish with what they began with.",
    go: "Let it go live",
    run: () => post(`${base(campaign)}/adapters/${adapter.digest}/promote`, { expected_version: campaign.live_version }),
  });
}

/** @param {Campaign} campaign */
export function pauseOrResume(campaign) {
  const active = campaign.state === "active";
  return ask({
    title: active ? "Pause this campaign?" : "Resume this campaign?",
    text: active ? "No more images are given out; those being labeled can be finished." : "Images are given out again.",
    go: active ? "Pause" : "Resume",
    run: () => post(`${base(campaign)}/${active ? "pause" : "resume"}`),
  });
}

/** @param {any} job That failed or was cancelled. */
export function tryAgain(job) {
  const id = uuid4();
  return ask({
    title: `Try the ${job.kind} again?`,
    text: "It is asked for anew, with what it was told before.",
    go: "Try again",
    run: () => post(`/api/campaigns/${job.campaign_id}/requests`, { id, kind: job.kind, payload: job.payload }),
  });
}

/** @param {{id: string, kind: string}} job */
export function cancelJob(job) {
  return ask({
    title: `Cancel this ${job.kind}?`,
    text: "A running job stops at its next batch; what it has finished is kept.",
    go: "Cancel the job",
    grave: true,
    run: () => post(`/api/requests/${job.id}/cancel`),
  });
}

/**
 * @param {Campaign} campaign @param {string} claimId With the same one there is the same claim.
 * @returns {Promise<any>} A claim on the next image (task null: nothing is left).
 */
export const claimNext = (campaign, claimId) => post(`${base(campaign)}/claim`, { claim_id: claimId });

/**
 * Claim an image and open some of its stored masks for correction. Those that are open already in one's own running
 * session are not opened twice.
 * @param {Campaign} campaign
 * @param {string} imageId
 * @param {{id: string, category_number: number | null}[]} masks
 * @returns {Promise<string>} Where to correct them.
 */
export async function beginCorrection(campaign, imageId, masks) {
  const claim = await post(`${base(campaign)}/claim`, { claim_id: uuid4(), image_id: imageId });
  const session = `/api/sessions/${claim.session_id}`;
  const { epoch } = await get(session);
  const log = await getAll(`${session}/events`);
  const opened = new Set(log.filter((event) => event.kind === "open").map((event) => event.payload.mask_id));
  const events = masks.filter((mask) => !opened.has(mask.id)).flatMap((mask) => {
    const instance = uuid4();
    const open = { kind: "open", instance_id: instance, payload: { mask_id: mask.id } };
    const category = { kind: "category", instance_id: instance, payload: { category: mask.category_number } };
    return mask.category_number === null ? [open] : [open, category];
  }).map((event, index) => ({
    ...event, event_id: uuid4(), seq: log.length + index + 1, session_epoch: epoch, lease_no: claim.lease_no, client_time: new Date().toISOString(),
  }));
  if (events.length > 0) await post(`${session}/events`, { events, mask: "none" });
  return `./#session=${claim.session_id}`;
}

/** Whether files can be fetched by a plain link: one cannot carry a token or a name. */
export const linksWork = () => !identity.token;
