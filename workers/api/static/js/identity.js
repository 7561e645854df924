/** Who works: asked for once, and again when a server refuses the token. Every page has this dialog. */

import { ApiError, identity } from "./api.js";
import { $ } from "./dom.js";

/**
 * @param {HTMLDialogElement} dialog That is open; the word of an earlier closing may still be on its way.
 * @returns {Promise<void>} When it is closed.
 */
export const closed = (dialog) => new Promise((done) => {
  dialog.onclose = () => {
    if (!dialog.open) done();
  };
});

/** @type {Promise<boolean> | null} */
let asking = null;

/**
 * Ask who works; again and again while nobody is named.
 * @param {string} why Shown above the fields.
 * @returns {Promise<boolean>} Whether they were filled in; false: everything stays as it was.
 */
export function askIdentity(why) {
  asking ??= fillIdentity(why).finally(() => { asking = null; });
  return asking;
}

/** @param {string} why */
async function fillIdentity(why) {
  const dialog = $("identity");
  $("identity-note").textContent = why;
  $("name").value = identity.name || "local";
  $("token").value = identity.token;
  do {
    dialog.returnValue = "";
    dialog.showModal();
    $("name").select();
    await closed(dialog);
  } while (!dialog.returnValue && !identity.name);
  if (!dialog.returnValue) return false;
  identity.set($("name").value || "local", $("token").value);
  showIdentity();
  return true;
}

/** Say who works. */
export function showIdentity() {
  $("who").hidden = !identity.name;
  $("who").textContent = identity.name;
  $("who").setAttribute("aria-label", `Labeling as ${identity.name}. Change your name or token`);
}

/**
 * Run something that talks to the server; a missing token is asked for, other refusals are told.
 * @param {() => Promise<void>} action
 * @param {(text: string) => void} tell
 * @returns {Promise<void>}
 */
export async function attempt(action, tell) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "unauthorized") {
      if (await askIdentity(error.message)) await attempt(action, tell);
      else tell(error.message);
    } else tell(error.message);
  }
}
