// Requests to the server. Every failure is thrown as `Trouble`: a message and a remedy.

import { sentence } from "./format.js";

const MAX_TRIES = 8; // while the server is busy
const MAX_PAUSE = 15; // seconds between two tries

/** An error for the user. `status` is the HTTP status, or 0 without a response. */
export class Trouble extends Error {
  constructor(status, message, remedy = "") {
    super(message);
    this.status = status;
    this.remedy = remedy;
  }
}

/** The keys that were entered. They last as long as the tab: in memory, and in its session storage for a reload. */
export const keys = {
  get(kind) {
    return held.get(kind) ?? "";
  },
  set(kind, key) {
    if (key) held.set(kind, key);
    else held.delete(kind);
    try {
      if (key) sessionStorage.setItem(`lookalike-${kind}-key`, key);
      else sessionStorage.removeItem(`lookalike-${kind}-key`);
    } catch {
      // no storage: keep it in memory
    }
  },
};
const held = new Map();
for (const kind of ["read", "write"]) {
  try {
    const key = sessionStorage.getItem(`lookalike-${kind}-key`);
    if (key) held.set(kind, key);
  } catch {
    // no storage
  }
}

/**
 * Make a request.
 * @param {string} path relative to the page, such as "v1/about"
 * @param {object} options
 *   method, body: of the request; the body is a Blob or FormData
 *   kind: "read" or "write", which key to send; the write key serves for both
 *   signal: aborts the request
 *   waiting: called with a message and seconds if the server is busy, before the next try
 * @returns {Promise<Response>} a response with status 2xx
 * @throws {Trouble}
 */
export async function ask(path, { method = "GET", body, kind = "read", signal, waiting = () => {} } = {}) {
  const key = kind === "write" ? keys.get("write") : keys.get("read") || keys.get("write");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body instanceof Blob) headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "application/octet-stream";
  for (let tries = 1; ; tries++) {
    let response;
    try {
      response = await fetch(path, { method, body, headers, signal, credentials: "omit", referrerPolicy: "no-referrer" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw await gone(Boolean(body));
    }
    if (response.ok) return response;
    const trouble = await read(response);
    const isBusy = response.status === 503 || response.status === 429;
    if (!isBusy || tries === MAX_TRIES) throw trouble;
    const seconds = Math.min(MAX_PAUSE, Math.max(1, Number(response.headers.get("Retry-After")) || tries));
    waiting(trouble.message, seconds);
    await pause(1000 * seconds * (1 + Math.random() / 4), signal); // jitter
  }
}

/** Make a request and parse the JSON of its response. */
export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

/** Wait; `signal` aborts. */
export function pause(ms, signal) {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      failed(signal.reason);
    }, { once: true });
  });
}

async function read(response) {
  let message = "";
  let remedy = "";
  try {
    ({ message = "", remedy = "" } = (await response.json()).error);
  } catch {
    // not from the service, but from a proxy
  }
  return new Trouble(
    response.status,
    sentence(message) || `The server answered with status ${response.status}.`,
    sentence(remedy) || "Try again. If it happens again, tell the operator.",
  );
}

/** There was no response: is the server gone, or did it close the connection during the upload? */
async function gone(sending) {
  if (sending) {
    try {
      if ((await fetch("live")).ok) {
        return new Trouble(0, "The server closed the connection during the upload.",
          "The image may be too large, or the connection too slow. Try a smaller image.");
      }
    } catch {
      // gone
    }
  }
  return new Trouble(0, "The server does not respond.", "Check that it is running and that you are online, then try again.");
}
