// The dialog that asks for a key, when the server does. One question at a time, however many requests were turned away.

import { Trouble, keys } from "./api.js";
import { at } from "./words.js";

const WORDS = {
  read: {
    title: "A key, please",
    why: "This service answers only who has its read key. The write key opens it, too.",
    refused: "The server did not accept that key. Ask for one from who runs it.",
  },
  write: {
    title: "The write key, please",
    why: "Pictures are added and removed only with the write key.",
    refused: "That key does not open this. The write key is another than the read key.",
  },
};
const asked = new Map(); // kind → the answer that is waited for

/**
 * Do something that needs a key, and ask for the key when the server does.
 * @param {"read" | "write"} kind
 * @param {() => Promise} work is done again with the key that was entered
 * @throws {Trouble} status 401 where the person entered none; whatever `work` throws else
 */
export async function withKey(kind, work) {
  for (;;) {
    const shown = keyFor(kind);
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Trouble) || !(error.status === 401 || (kind === "write" && error.status === 403 && shown))) throw error;
      if (keyFor(kind) !== shown) continue; // another request has asked already
      if (shown) forget(kind);
      if (!(await enter(kind, Boolean(shown)))) throw new Trouble(401, WORDS[kind].why, "Enter it to go on.");
    }
  }
}

/** Ask for a key. Returns whether one was entered. */
export function enter(kind, isRefused = false) {
  if (!asked.has(kind)) {
    asked.set(kind, dialog(kind, isRefused).finally(() => asked.delete(kind)));
  }
  return asked.get(kind);
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
        at("key-refused").textContent = key ? "A key has only letters, digits and signs of ASCII, without spaces." : "Enter the key first.";
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
