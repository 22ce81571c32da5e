// Notices above the results: errors with what to do about them, and that the server is busy.

import { Trouble } from "./api.js";
import { at, sentence } from "./format.js";

const ANNOUNCE_MS = 400; // results that arrive within this time are announced together

let again = null;
let telling = 0; // the timer of the next announcement

/** Show an error, with a button that calls `retry`, if given. */
export function fail(error, retry = null, word = "Try again") {
  const trouble = error instanceof Trouble ? error : unforeseen(error);
  again = retry;
  at("trouble-what").textContent = trouble.message;
  at("trouble-remedy").textContent = trouble.remedy;
  at("trouble-again").textContent = word;
  at("trouble-again").hidden = retry === null;
  at("trouble").hidden = false;
  quiet();
  hush();
}

/** Hide the error. */
export function clear() {
  at("trouble").hidden = true;
  again = null;
}

/** Show that the server is busy; for `ask`. */
export function waiting(message, seconds) {
  at("waiting-words").textContent = `${sentence(message)} Trying again in ${Math.round(seconds)} s.`;
  at("waiting").hidden = false;
}

/** Hide that the server is busy. */
export function quiet() {
  at("waiting").hidden = true;
}

/** Announce something to screen readers, soon; `words` returns it then. */
export function tellSoon(words) {
  clearTimeout(telling);
  telling = setTimeout(() => {
    at("live").textContent = words();
  }, ANNOUNCE_MS);
}

/** Drop the announcement: it belongs to an earlier query. */
export function hush() {
  clearTimeout(telling);
  at("live").textContent = "";
}

/** Connect the buttons of the notice. */
export function listen() {
  at("trouble-again").addEventListener("click", () => {
    const retry = again;
    clear();
    retry?.();
  });
  at("trouble-close").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => event.key === "Escape" && clear());
}

function unforeseen(error) {
  console.error(error);
  return new Trouble(0, "An unexpected error occurred.", "Reload the page. If it happens again, tell the operator.");
}
