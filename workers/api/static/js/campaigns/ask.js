/** Asking before something is done: one dialog with a text, fields and two answers. Knows no campaign. */

import { ApiError } from "../api.js";
import { askIdentity } from "../identity.js";
import { $, make } from "../dom.js";

/**
 * @typedef {object} Field
 * @property {string} name
 * @property {string} label
 * @property {"text" | "number" | "select" | "checks" | "lines"} kind Lines: one entry per line.
 * @property {string} [hint]
 * @property {string} [value]
 * @property {boolean} [required]
 * @property {[value: string, text: string, checked?: boolean][]} [choices] Of a select or of checks.
 * @property {Record<string, string | number>} [limits] Attributes of a text or number.
 */
/** @typedef {Record<string, any>} Answers By the fields' names: text, number or null, or a list. */

/** @param {Field} field @returns {HTMLElement} */
function fieldOf(field) {
  const hint = field.hint && make("small", { className: "quiet", id: `field-${field.name}-hint`, textContent: field.hint });
  if (field.kind === "checks") {
    const checks = (field.choices ?? []).map(([value, text, checked = false]) =>
      make("label", { className: "check" }, make("input", { type: "checkbox", name: field.name, value, checked }), text));
    return make("fieldset", {}, make("legend", { textContent: field.label }), ...checks, hint);
  }
  const id = `field-${field.name}`;
  const common = { id, name: field.name, required: field.required ?? false, ...(hint ? { "aria-describedby": `${id}-hint` } : {}) };
  const input = field.kind === "select"
    ? make("select", common, ...(field.choices ?? []).map(([value, text]) => make("option", { value, textContent: text })))
    : make(field.kind === "lines" ? "textarea" : "input", { ...common, autocomplete: "off", spellcheck: false, ...(field.kind === "number" ? { type: "number", step: "any" } : {}) });
  for (const [name, value] of Object.entries(field.limits ?? {})) input.setAttribute(name, String(value));
  if (field.value !== undefined) input.value = field.value;
  return make("div", { className: "field" }, make("label", { htmlFor: id, textContent: field.label }), input, hint);
}

/** @param {HTMLFormElement} form @param {Field[]} fields @returns {Answers} */
function answersOf(form, fields) {
  const data = new FormData(form);
  return Object.fromEntries(fields.map(({ name, kind }) => {
    const text = String(data.get(name) ?? "").trim();
    if (kind === "checks") return [name, data.getAll(name)];
    if (kind === "number") return [name, text === "" ? null : Number(text)];
    if (kind === "lines") return [name, text.split("\n").map((line) => line.trim()).filter(Boolean)];
    return [name, text];
  }));
}

/** How often was asked: an answer of the server that comes after its dialog was closed must not touch the next one. */
let asked = 0;

/**
 * Ask, and do it when the answer is yes; a refusal by the server is shown and can be answered again.
 * @template T
 * @param {{title: string, text?: string, fields?: Field[], go: string, grave?: boolean, run: (answers: Answers) => Promise<T>}} what
 *   Go: what the button that does it says. Run may be called again with the same or other answers.
 * @returns {Promise<T | null>} What came of it, also where the dialog was closed before the server had answered; null: it was not done.
 */
export function ask({ title, text = "", fields = [], go, grave = false, run }) {
  const dialog = $("ask");
  const form = /** @type {HTMLFormElement} */ (dialog.querySelector("form"));
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-fields").replaceChildren(...fields.map(fieldOf));
  $("ask-fields").classList.toggle("many", fields.length > 4);
  $("ask-error").textContent = "";
  const button = $("ask-go");
  button.textContent = go;
  button.disabled = false;
  button.classList.toggle("grave", grave);
  /** @type {T | null} */
  let outcome = null;
  /** @type {Promise<void> | null} */
  let running = null;
  const mine = ++asked;
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!button.disabled) running = submit();
  };
  $("ask-cancel").onclick = () => dialog.close();
  dialog.showModal();
  (fields.length > 0 ? form.querySelector("#ask-fields input, #ask-fields select, #ask-fields textarea") : $("ask-cancel"))?.focus();
  return new Promise((done) => dialog.addEventListener("close", async () => {
    await running;
    done(outcome);
  }, { once: true }));

  async function submit() {
    button.disabled = true;
    $("ask-error").textContent = "";
    try {
      outcome = await run(answersOf(form, fields));
      if (mine === asked) dialog.close();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (mine === asked && dialog.open) $("ask-error").textContent = error.message;
      if (error.code === "unauthorized") await askIdentity(error.message);
    } finally {
      if (mine === asked) button.disabled = false;
    }
  }
}
