// What a person must be told above the answers: that something went wrong and what to do, or that it takes a while.

import { Trouble } from "./api.js";
import { at, sentence } from "./words.js";

const SOON = 400; // milliseconds, in which what is found together is told together

let again = null;
let telling = 0; // the timer of what is said aloud

/** Say what went wrong, with a button that tries again where `retry` is given. */
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

/** Nothing is wrong any more. */
export function clear() {
  at("trouble").hidden = true;
  again = null;
}

/** Say that the server puts it off; for `ask`. */
export function waiting(message, seconds) {
  at("waiting-words").textContent = `${sentence(message)} Asking again in ${Math.round(seconds)} s.`;
  at("waiting").hidden = false;
}

/** It no longer does. */
export function quiet() {
  at("waiting").hidden = true;
}

/** Say something, soon, to who listens to the page instead of looking at it; `words` is called for it then. */
export function tellSoon(words) {
  clearTimeout(telling);
  telling = setTimeout(() => {
    at("live").textContent = words();
  }, SOON);
}

/** What was said, or was about to be, holds no longer: it was of another question. */
export function hush() {
  clearTimeout(telling);
  at("live").textContent = "";
}

/** Let the notice's own buttons work. */
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
  return new Trouble(0, "The page made a mistake.", "Load it again; if it stays so, tell who runs it.");
}
