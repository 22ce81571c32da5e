// What stands around the wall: how many look-alikes there are, what is hidden, what to do where there are none.

import { at, cosine, count, duration, el } from "./words.js";

export const STEPS = [12, 24, 48, 96, 192]; // answers at most

/**
 * Say what was found.
 * @param {object} found the answer to the search
 * @param {number} shown hits that are alike enough
 * @param {number} least score of those
 * @param {number} rows of the collection
 * @param {boolean} isMore whether more could be asked for
 */
export function show(found, shown, least, rows, isMore) {
  const rest = found.hits.length - shown;
  at("status").replaceChildren(
    el("strong", { textContent: count(shown, "look-alike") }),
    ` among ${count(rows, "picture")} `,
    el("span", { className: "fine", textContent: `${duration(found.took_ms)}, ${found.exact ? "compared with every one" : "by an approximate index"}` }),
  );
  at("exact").hidden = found.exact;
  at("rest").hidden = shown === 0 || (rest === 0 && !isMore);
  at("rest-words").textContent = rest ? `${count(rest, "picture")} more ${rest === 1 ? "is" : "are"} below ${cosine(least)}.` : "";
  at("lower").hidden = rest === 0;
  at("more").hidden = rest > 0 || !isMore;
}

/** Nothing was searched yet. */
export function clear() {
  at("status").replaceChildren();
  for (const id of ["exact", "rest", "nothing"]) at(id).hidden = true;
}

/** Say why there are none, and offer what helps: `action` is its name, `run` what it does, or null. */
export function nothing(words, remedy = "", action = "", run = null) {
  at("nothing-words").textContent = words;
  at("nothing-remedy").textContent = remedy;
  at("nothing-action").textContent = action;
  at("nothing-action").hidden = run === null;
  at("nothing-action").onclick = run;
  at("nothing").hidden = false;
}

/** Offer steps of how many; `k` is the one that holds. */
export function offerSteps(k, most) {
  const steps = [...new Set([...STEPS, k])].filter((step) => step <= most).sort((a, b) => a - b);
  at("many").replaceChildren(...steps.map((step) => el("option", { value: step, textContent: step, selected: step === k })));
}

/** The answer in one sentence, for who listens. */
export function spoken(found, shown) {
  const [closest] = found.hits;
  const best = shown ? `, the closest: ${closest.label ?? "no label"}, ${cosine(closest.score)}` : "";
  return `${count(shown, "look-alike")}${best}.`;
}
