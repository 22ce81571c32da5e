// The dialog that asks for an API key when the server requires one: one dialog, however many requests were refused.

import { Trouble, keys } from "./api.js";
import { at } from "./format.js";

const WORDS = {
  read: {
    title: "Key required",
    why: "This service requires its read key or its write key.",
    refused: "The server did not accept this key.",
  },
  write: {
    title: "Write key required",
    why: "Adding and removing items requires the write key.",
    refused: "This is not the write key.",
  },
};
const dialogs = new Map(); // kind → the promise of the open dialog

/**
 * Make a request, and ask for a key if the server requires one.
 * @param {"read" | "write"} kind
 * @param {() => Promise} work the request; repeated with the key that was entered
 * @throws {Trouble} status 401 if no key was entered; otherwise whatever `work` throws
 */
export async function withKey(kind, work) {
  for (;;) {
    const shown = keyFor(kind);
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Trouble) || !(error.status === 401 || (kind === "write" && error.status === 403 && shown))) throw error;
      if (keyFor(kind) !== shown) continue; // entered for another request meanwhile
      if (shown) forget(kind);
      if (!(await enter(kind, Boolean(shown)))) throw new Trouble(401, WORDS[kind].why, "Enter it to continue.");
    }
  }
}

/** Ask for a key. Returns whether one was entered. */
export function enter(kind, isRefused = false) {
  if (!dialogs.has(kind)) {
    dialogs.set(kind, dialog(kind, isRefused).finally(() => dialogs.delete(kind)));
  }
  return dialogs.get(kind);
}

function keyFor(kind) {
  return kind === "write" ? keys.get("write") : keys.get("read") || keys.get("write");
}

function forget(kind) {
  keys.set(kind === "read" && !keys.get("read") ? "write" : kind, "");
}

async function dialog(kind, isRefused) {
  const box = at("key-dialog");
  while (box.open) await new Promise((done) => box.addEventListener("close", done, { once: true }));
  const words = WORDS[kind];
  at("key-title").textContent = words.title;
  at("key-why").textContent = words.why;
  at("key-refused").textContent = isRefused ? words.refused : "";
  at("key").value = "";
  at("key").setAttribute("aria-invalid", isRefused);
  return new Promise((done) => {
    const submit = (event) => {
      event.preventDefault();
      const key = at("key").value.trim();
      if (!/^[!-~]+$/.test(key)) {
        at("key-refused").textContent = key ? "A key is ASCII text without spaces." : "Enter a key.";
        at("key").setAttribute("aria-invalid", true);
        at("key").focus();
        return;
      }
      keys.set(kind, key);
      box.close("entered");
    };
    at("key-form").addEventListener("submit", submit);
    at("key-cancel").onclick = () => box.close("");
    box.addEventListener("close", () => {
      at("key-form").removeEventListener("submit", submit);
      at("key").value = "";
      const isEntered = box.returnValue === "entered";
      box.returnValue = "";
      done(isEntered);
    }, { once: true });
    box.showModal();
    at("key").focus();
  });
}
