/** Looking through a campaign's images: filters, a grid of pictures with their masks, and one image large. */

import { ApiError, get } from "../api.js";
import { colourOf } from "../overlay.js";
import { beginCorrection } from "./actions.js";
import { $, make } from "../dom.js";
import { badge, button, counted, number, when } from "./dom.js";
import { drawPicture, loadPicture, maskAt } from "./pictures.js";

const PAGE = 24;
const SMALL = 320;
const LARGE = 1280;
const STATES = [["", "any state"], ["done", "done"], ["submitted", "submitted"], ["skipped", "skipped"], ["leased", "being labeled"], ["new", "new"]];

let showsMasks = true;
let loading = new AbortController();

/**
 * @param {{campaign: any, annotators: {id: string, name: string}[], params: URLSearchParams, go: (changes: Record<string, string>) => void,
 *   attempt: (action: () => Promise<void>) => Promise<void>}} page
 *   Go: change the filters (and the page) in the address.
 * @returns {Promise<HTMLElement>}
 */
export async function gallery({ campaign, annotators, params, go, attempt }) {
  loading.abort();
  loading = new AbortController();
  const filters = { state: params.get("state") ?? "done", category: params.get("category") ?? "", annotator: params.get("annotator") ?? "", unsure: params.get("unsure") ?? "" };
  const passed = (params.get("after") ?? "").split("-").filter(Boolean);
  const query = new URLSearchParams(Object.entries({ ...filters, after: passed[passed.length - 1] ?? "0" }).filter(([, value]) => value !== ""));
  const path = `/api/campaigns/${campaign.id}/browse`;
  const found = await get(`${path}?${query}&limit=${PAGE}&preview=${SMALL}`);

  /** @param {keyof typeof filters} name @param {string} label @param {string[][]} choices */
  const select = (name, label, choices) => {
    const element = make("select", { id: `filter-${name}` }, ...choices.map(([value, text]) => make("option", { value, textContent: text })));
    element.value = filters[name];
    element.onchange = () => go({ [name]: element.value, after: "" });
    return make("div", { className: "field" }, make("label", { htmlFor: element.id, textContent: label }), element);
  };
  const shows = make("input", { type: "checkbox", checked: showsMasks });
  const filterRow = make("div", { className: "filters", role: "group", "aria-label": "Filters" },
    select("state", "State", STATES),
    select("category", "Category", [["", "any category"], ...campaign.categories.map((/** @type {any} */ one) => [String(one.number), one.name])]),
    select("annotator", "Annotator", [["", "anybody"], ...annotators.map((one) => [one.id, one.name])]),
    select("unsure", "Objects", [["", "any"], ["true", "some unsure"]]),
    make("label", { className: "check" }, shows, "Show masks"));

  /** @type {{canvas: HTMLCanvasElement, picture: import("./pictures.js").Picture | null}[]} */
  const drawn = [];
  shows.onchange = () => {
    showsMasks = shows.checked;
    for (const { canvas, picture } of drawn) if (picture) drawPicture(canvas, picture, { masks: showsMasks });
  };
  const { signal } = loading;
  const tiles = found.results.map((/** @type {any} */ image, /** @type {number} */ index) => {
    const canvas = make("canvas", { width: image.preview_size[1], height: image.preview_size[0], "aria-hidden": "true" });
    const entry = { canvas, picture: /** @type {import("./pictures.js").Picture | null} */ (null) };
    drawn.push(entry);
    loadPicture(image, SMALL, campaign.categories, signal).then((picture) => {
      entry.picture = picture;
      drawPicture(canvas, picture, { masks: showsMasks });
      tile.dataset.drawn = "";
    }).catch((error) => {
      if (!signal.aborted) tile.dataset.broken = error.message;
    });
    const masks = counted(image.num_masks, "mask");
    const tile = make("button", {
      type: "button", className: "tile", "aria-label": `Image ${image.number}, ${image.file_name}, ${image.state}${image.skip_reason ? `: ${image.skip_reason}` : ""}, ${masks}`,
      onclick: () => showLarge(index),
    }, make("span", { className: "frame" }, canvas),
      make("span", { className: "line" }, make("span", { className: "name", textContent: image.file_name, title: image.file_name }), image.state !== "done" && badge(image.state)),
      make("span", { className: "line quiet" }, `#${image.number} · ${masks}${image.holdout ? " · held out" : ""}`),
      image.skip_reason && make("span", { className: "line quiet" }, make("span", { className: "name", textContent: image.skip_reason, title: image.skip_reason })));
    return make("li", {}, tile);
  });
  const first = passed.length * PAGE;
  const range = found.results.length ? `${number(first + 1)}–${number(first + found.results.length)} of ${found.is_exact ? "" : "more than "}${counted(found.count, "image")}` : "No image is like that.";
  const pager = make("div", { className: "pager" },
    button("Previous", () => go({ after: passed.slice(0, -1).join("-") }), { id: "page-before", disabled: passed.length === 0 }),
    make("span", { role: "status", className: "quiet", textContent: range }),
    button("Next", () => go({ after: [...passed, found.next].join("-") }), { id: "page-after", disabled: found.next === null }));

  /** @param {number} index Of the page's images. */
  async function showLarge(index) {
    await attempt(() => large(campaign, found.results, index));
    tiles[index]?.querySelector("button")?.focus();
  }

  return make("div", { className: "gallery" }, filterRow, make("ul", { className: "grid", "aria-label": "Images" }, ...tiles), pager);
}

/**
 * Show an image in the dialog, its objects beside it; left and right go to its neighbours.
 * @param {any} campaign @param {any[]} images @param {number} index @returns {Promise<void>} When the dialog is closed.
 */
async function large(campaign, images, index) {
  const dialog = $("picture");
  const image = await get(`/api/campaigns/${campaign.id}/browse/${images[index].id}?preview=${LARGE}`);
  /** @type {Set<string>} */
  const chosen = new Set();
  const stop = new AbortController();
  const canvas = make("canvas", { width: image.preview_size[1], height: image.preview_size[0], role: "img", "aria-label": `Image ${image.file_name} with ${counted(image.num_masks, "mask")}` });
  const names = new Map(campaign.categories.map((/** @type {any} */ one, /** @type {number} */ place) => [one.number, { name: one.name, place }]));
  const message = make("p", { role: "alert", className: "bad" });
  const correct = button("", begin, { className: "main" });
  /** @type {import("./pictures.js").Picture | null} */
  let picture = null;

  const objects = image.masks.map((/** @type {any} */ mask, /** @type {number} */ place) => {
    const known = names.get(mask.category_number);
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${colourOf(known ? known.place : null).join(" ")})`;
    const box = make("input", { type: "checkbox", value: mask.id, onchange: () => choose(mask.id, box.checked) });
    const who = mask.source === "import" ? "imported" : `${mask.annotator}, ${counted(mask.num_clicks, "click")}`;
    return make("li", {}, make("label", { className: "check" }, box, swatch,
      make("span", { className: "name" }, `${place + 1} ${known ? known.name : "object"}${mask.unsure ? " (unsure)" : ""}`),
      make("small", { className: "quiet" }, who, " · ", when(mask.created_at))));
  });

  /** @param {string} id @param {boolean} on */
  function choose(id, on) {
    if (on) chosen.add(id);
    else chosen.delete(id);
    const box = /** @type {HTMLInputElement | null} */ (dialog.querySelector(`input[value="${CSS.escape(id)}"]`));
    if (box) box.checked = on;
    render();
  }

  function render() {
    if (picture) drawPicture(canvas, picture, { masks: true, chosen });
    correct.textContent = image.masks.length === 0 ? "Label this image" : chosen.size === 0 ? "Add objects" : `Correct ${counted(chosen.size, "object")}`;
  }

  async function begin() {
    correct.disabled = true;
    message.textContent = "";
    try {
      const masks = image.masks.filter((/** @type {any} */ mask) => chosen.has(mask.id));
      location.href = await beginCorrection(campaign, image.id, masks);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      message.textContent = error.message;
      correct.disabled = false;
    }
  }

  canvas.onclick = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height); // it is fitted into its box
    const x = (event.clientX - box.left - (box.width - canvas.width * scale) / 2) / scale;
    const y = (event.clientY - box.top - (box.height - canvas.height * scale) / 2) / scale;
    const id = picture && maskAt(picture, x, y);
    if (id) choose(id, !chosen.has(id));
  };
  /** @param {number} by */
  const step = (by) => {
    if (images[index + by]) next = index + by;
    if (next !== null) dialog.close();
  };
  /** @type {number | null} */
  let next = null;
  dialog.onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  };
  const more = image.num_masks > image.masks.length ? make("p", { className: "quiet", textContent: `The first ${image.masks.length} of ${number(image.num_masks)} are shown.` }) : null;
  dialog.replaceChildren(
    make("div", { className: "picture-head" },
      make("h2", { id: "picture-title", textContent: image.file_name }), badge(image.state),
      button("‹", () => step(-1), { ariaLabel: "Previous image", disabled: index === 0 }),
      button("›", () => step(1), { ariaLabel: "Next image", disabled: index === images.length - 1 }),
      button("Close", () => dialog.close())),
    make("div", { className: "picture-body" },
      make("div", { className: "picture-stage" }, canvas),
      make("div", { className: "picture-side" },
        make("p", { className: "quiet", textContent: `Image ${image.number} · ${image.width}×${image.height}${image.holdout ? " · held out" : ""}` }),
        image.skip_reason && make("p", { textContent: `Skipped: ${image.skip_reason}` }),
        make("h3", { textContent: "Objects" }),
        image.masks.length ? make("ul", { className: "objects" }, ...objects) : make("p", { className: "quiet", textContent: "None." }), more,
        make("p", { className: "quiet", textContent: image.masks.length ? "Choose those to correct, here or in the image; the others stay as they are." : "" }),
        message, correct)));
  render();
  dialog.showModal();
  loadPicture(image, LARGE, campaign.categories, stop.signal).then((loaded) => {
    picture = loaded;
    canvas.dataset.drawn = "";
    render();
  }).catch((error) => {
    if (!stop.signal.aborted) message.textContent = error.message;
  });
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  stop.abort();
  dialog.replaceChildren();
  if (next !== null) await large(campaign, images, next);
}
