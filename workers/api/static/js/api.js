/** JSON and files over HTTP, as somebody. Knows routes' shapes (errors, lists), not what they are for. */

/** An answer that says no; `code` is the server's error code, "offline" where no answer came. */
export class ApiError extends Error {
  /** @param {string} code @param {string} message @param {Record<string, any>} [details] */
  constructor(code, message, details = {}) {
    super(message);
    this.code = code;
    this.details = details;
  }
}

/** Codes after which the same call may well succeed. */
export const PASSING = new Set(["offline", "busy", "database_unavailable", "embedding_missing"]);

/** What a proxy answers while the server behind it is away. */
const AWAY = new Set([502, 503, 504]);

/** How long the server may take to begin an answer: a connection that is half-open never ends by itself. */
const BEGIN_MS = 20_000;

/** @param {number} ms @returns {Promise<void>} */
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Who works here, kept in this browser. */
export const identity = {
  get name() { return localStorage.getItem("clickloop.name") ?? ""; },
  get token() { return localStorage.getItem("clickloop.token") ?? ""; },
  /** @param {string} name @param {string} token */
  set(name, token) {
    localStorage.setItem("clickloop.name", name.trim());
    localStorage.setItem("clickloop.token", token.trim());
  },
};

function headers() {
  /** @type {Record<string, string>} */
  const found = {};
  if (identity.name) found["X-Annotator"] = identity.name;
  if (identity.token) found.Authorization = `Bearer ${identity.token}`;
  try {
    new Headers(found);
  } catch {
    throw new ApiError("unauthorized", "Your name or token has signs that cannot be sent. Type the name anew, and copy the token once more.");
  }
  return found;
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} A good answer.
 */
async function call(path, init = {}) {
  const silence = new AbortController();
  init.signal?.addEventListener("abort", () => silence.abort());
  const given = { ...init, headers: { ...headers(), ...init.headers }, signal: silence.signal };
  const timer = setTimeout(() => silence.abort(), BEGIN_MS);
  let answer;
  try {
    answer = await fetch(path, given);
  } catch {
    throw new ApiError("offline", "The server does not answer.");
  } finally {
    clearTimeout(timer);
  }
  if (answer.ok) return answer;
  const error = (await answer.json().catch(() => null))?.error;
  if (typeof error?.code === "string") throw new ApiError(error.code, error.message, error.details);
  throw new ApiError(AWAY.has(answer.status) ? "offline" : "error", `The server answered ${answer.status}.`);
}

/**
 * @template T
 * @param {Promise<T>} body Of a good answer.
 * @returns {Promise<T>} The same; one that breaks off, or is none of ours, counts as no answer.
 */
const whole = (body) => body.catch((error) => {
  throw error.name === "AbortError" ? error : new ApiError("offline", "The server's answer cannot be read.");
});

/** @param {string} path @returns {Promise<any>} */
export async function get(path) {
  return whole((await call(path)).json());
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<Blob>} */
export async function getBlob(path, init) {
  return whole((await call(path, init)).blob());
}

/** @param {string} path @param {unknown} [body] @returns {Promise<any>} */
export async function post(path, body) {
  const json = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) };
  return whole((await call(path, json)).json());
}

/** @param {string} path Of a list. @returns {Promise<any[]>} All its pages. */
export async function getAll(path) {
  const results = [];
  for (let next = path; next; ) {
    const page = await get(next);
    results.push(...page.results);
    next = page.next;
  }
  return results;
}

/**
 * Repeat a call while the server is away or busy.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {(error: ApiError) => void} [onWait] Called before each pause.
 * @returns {Promise<T>}
 */
export async function patiently(attempt, onWait) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ApiError) || !PASSING.has(error.code)) throw error;
      onWait?.(error);
      await sleep(pause);
    }
  }
}
