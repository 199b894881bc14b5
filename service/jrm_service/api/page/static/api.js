/** The server's routes: relative to this page's own URL, with the key of this session, failures as typed errors. */

const BASE = new URL(".", document.baseURI);
const STORED = `jrm-key ${BASE.pathname}`; // per path: two servers behind one proxy have different keys

/** A reply that is not 2xx. */
export class ApiError extends Error {
  /**
   * @param {Response} response
   * @param {any} body the JSON document, or null where something else answered
   */
  constructor(response, body) {
    const error = body?.error ?? {};
    super(error.message ?? `${response.status} ${response.statusText || "without a reason"}`);
    this.status = response.status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.groups = body?.groups ?? null;
    this.requestId = response.headers.get("x-request-id");
    const after = Number(response.headers.get("retry-after"));
    this.retryAfter = Number.isFinite(after) && after > 0 ? Math.min(after, 600) : null;
  }
}

/** No reply at all, or one that was cut off. */
export class Unreachable extends Error {}

/** Whether the server responds: "up" and "down" events, each when that changes. */
export const connection = new (class extends EventTarget {
  up = true;
  set(up) {
    if (up === this.up) return;
    this.up = up;
    this.dispatchEvent(new Event(up ? "up" : "down"));
  }
})();

/** @type {(refused: boolean) => Promise<string | null>} */
let prompt = async () => null;
/** @type {Promise<string | null> | null} */
let asking = null;
let declined = false;

/** Asks the user for a key: resolves to it, or to null. `refused`: the last key was wrong. */
export function askKeysWith(dialog) {
  prompt = dialog;
}

/** Forgets the key of this session, so that the next request asks for one. */
export function forgetKey() {
  sessionStorage.removeItem(STORED);
  declined = false;
}

/** Asks again after the dialog was dismissed: for actions of the user, not for the page's own polling. */
export function mayAskAgain() {
  declined = false;
}

const storedKey = () => sessionStorage.getItem(STORED);

/** One dialog, however many requests need a key. */
async function newKey(sent) {
  if (storedKey() !== sent) return storedKey(); // another request has asked meanwhile
  if (declined) return null;
  asking ??= prompt(sent !== null).finally(() => (asking = null));
  const key = await asking;
  if (key === null) declined = true;
  else sessionStorage.setItem(STORED, key);
  return key;
}

/**
 * A 2xx reply. Raises ApiError, Unreachable, and AbortError where `signal` is used.
 *
 * @param {string} path relative, such as "v1/score"
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, options = {}) {
  for (;;) {
    const key = storedKey();
    const headers = new Headers(options.headers);
    if (key !== null) headers.set("authorization", `Bearer ${key}`);
    let response;
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      connection.set(false);
      throw new Unreachable("The server does not answer.");
    }
    if (response.ok) {
      connection.set(true);
      return response;
    }
    const failure = new ApiError(response, await response.json().catch(() => null));
    if (failure.status !== 401 || (await newKey(key)) === null) throw failure;
  }
}

/** The body of a reply as JSON. Raises what `request` raises. */
export async function json(path, options) {
  const response = await request(path, options);
  return read(response.json(), options?.signal);
}

/** The body of a reply as text. */
export async function text(path) {
  return read((await request(path)).text());
}

async function read(body, signal) {
  try {
    return await body;
  } catch (error) {
    if (signal?.aborted) throw error;
    connection.set(false);
    throw new Unreachable("The server's answer broke off.");
  }
}

/**
 * A form of one `request` part and one part for each distinct picture, as the SDK sends it.
 *
 * @param {(part: (blob: Blob) => string) => object} document builds the JSON; `part` gives the name for a picture in it
 */
export function form(document) {
  const names = new Map();
  const part = (blob) => {
    if (!names.has(blob)) names.set(blob, `picture-${names.size}`);
    return `part:${names.get(blob)}`;
  };
  const body = new FormData();
  body.append("request", JSON.stringify(document(part)));
  for (const [blob, name] of names) body.append(name, blob, name);
  return body;
}

/**
 * Server-sent events of a reply, until it ends. Raises Unreachable when it breaks off.
 *
 * @param {Response} response
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<{event: string, id: string | null, data: string}>}
 */
export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader.read(), signal);
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = { event: "message", id: null, data: "" };
        const data = [];
        for (const line of block.split("\n")) {
          const [, field, content] = /^(event|id|data):? ?(.*)$/.exec(line) ?? [];
          if (field === "data") data.push(content);
          else if (field) event[field] = content;
        }
        if (data.length) yield { ...event, data: data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
