// The status of a search: how many look-alikes there are, how many are hidden, what to do if there are none.

import { at, cosine, count, duration, el } from "./format.js";

export const STEPS = [12, 24, 48, 96, 192]; // choices of k

/**
 * Show the status of a search.
 * @param {object} found the response of /v1/search
 * @param {number} shown number of hits that reach the threshold
 * @param {number} least the threshold
 * @param {number} items number of items in the gallery
 * @param {boolean} isMore whether a larger k would return more
 */
export function show(found, shown, least, items, isMore) {
  const rest = found.hits.length - shown;
  at("status").replaceChildren(
    el("strong", { textContent: count(shown, "look-alike") }),
    ` among ${count(items, "image")} `,
    el("span", { className: "fine", textContent: `${duration(found.took_ms)}, ${found.exact ? "exact search" : "approximate search"}` }),
  );
  at("exact").hidden = found.exact;
  at("rest").hidden = shown === 0 || (rest === 0 && !isMore);
  at("rest-words").textContent = rest ? `${count(rest, "more image")} below ${cosine(least)}.` : "";
  at("lower").hidden = rest === 0;
  at("more").hidden = rest > 0 || !isMore;
}

/** Clear the status. */
export function clear() {
  at("status").replaceChildren();
  for (const id of ["exact", "rest", "nothing"]) at(id).hidden = true;
}

/** Show why there are no look-alikes, with a button `action` that calls `run`, if given. */
export function nothing(words, remedy = "", action = "", run = null) {
  at("nothing-words").textContent = words;
  at("nothing-remedy").textContent = remedy;
  at("nothing-action").textContent = action;
  at("nothing-action").hidden = run === null;
  at("nothing-action").onclick = run;
  at("nothing").hidden = false;
}

/** Offer choices of k. */
export function offerSteps(k, most) {
  const steps = [...new Set([...STEPS, k])].filter((step) => step <= most).sort((a, b) => a - b);
  at("many").replaceChildren(...steps.map((step) => el("option", { value: step, textContent: step, selected: step === k })));
}

/** The result in one sentence, for screen readers. */
export function spoken(found, shown) {
  const [closest] = found.hits;
  const best = shown ? `, most similar: ${closest.label ?? "no label"}, ${cosine(closest.score)}` : "";
  return `${count(shown, "look-alike")}${best}.`;
}
