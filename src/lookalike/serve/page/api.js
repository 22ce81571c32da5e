// Questions to the server. What goes wrong arrives as `Trouble`: a sentence and a remedy, whatever the cause was.

import { sentence } from "./words.js";

const TRIES = 8; // of a question that a busy server puts off
const LONGEST = 15; // seconds between two tries

/** What went wrong, in words. `status` is HTTP's, or 0 where nothing answered. */
export class Trouble extends Error {
  constructor(status, message, remedy = "") {
    super(message);
    this.status = status;
    this.remedy = remedy;
  }
}

/** The keys that were entered. They live as long as the tab: in memory, and in the tab's own storage for a reload. */
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
      // no storage: memory is enough
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
 * Ask the server.
 * @param {string} path under the page's own address, such as "v1/about"
 * @param {object} how
 *   method, body: of HTTP; a Blob goes as it is
 *   kind: "read" or "write", which key to show; the write key opens both
 *   signal: gives the question up
 *   waiting: called with a sentence and seconds when the server is busy, before it is asked again
 * @returns {Promise<Response>} an answer that is well
 * @throws {Trouble}
 */
export async function ask(path, { method = "GET", body, kind = "read", signal, waiting = () => {} } = {}) {
  const key = kind === "write" ? keys.get("write") : keys.get("read") || keys.get("write");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "application/octet-stream";
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
    if (!isBusy || tries === TRIES) throw trouble;
    const seconds = Math.min(LONGEST, Math.max(1, Number(response.headers.get("Retry-After")) || tries));
    waiting(trouble.message, seconds);
    await pause(1000 * seconds * (1 + Math.random() / 4), signal); // not all pages at the same moment
  }
}

/** Likewise, for an answer in JSON. */
export async function askJson(path, how) {
  return (await ask(path, how)).json();
}

/** Wait so many milliseconds; `signal` ends it with an error. */
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
    // not the service itself, but something on the way to it
  }
  return new Trouble(
    response.status,
    sentence(message) || "The server could not answer this.",
    sentence(remedy) || "Try again; if it stays so, tell who runs it.",
  );
}

/** Nothing answered: is the server away, or did it hang up while a picture was sent? */
async function gone(sending) {
  if (sending) {
    try {
      if ((await fetch("live")).ok) {
        return new Trouble(0, "The server stopped listening while the picture was being sent.",
          "The picture may be too large, or the connection too slow: try a smaller one.");
      }
    } catch {
      // it is away
    }
  }
  return new Trouble(0, "The server does not answer.", "See that it is still running and that you are online, then try again.");
}
