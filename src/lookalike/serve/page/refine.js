// "More like these, less like those": items that are part of the query, shown below its image.

import { load } from "./thumbnails.js";
import { at, el } from "./format.js";

let loading = new AbortController();

/**
 * Show the items.
 * @param {{like: number[], unlike: number[]}} view ids of the items
 * @param {(id: number) => void} drop called with an item to leave out
 */
export function show({ like, unlike }, drop) {
  loading.abort();
  loading = new AbortController();
  const chips = [...like.map((id) => chip(id, false, drop)), ...unlike.map((id) => chip(id, true, drop))];
  at("refine-list").replaceChildren(...chips.map(({ item }) => item));
  at("refine").hidden = chips.length === 0;
  for (const { image, id } of chips) load(image, id, loading.signal);
}

function chip(id, isUnlike, drop) {
  const words = isUnlike ? "Less like" : "More like";
  const image = el("img", { alt: "", draggable: false });
  const button = el("button", { type: "button", ariaLabel: `${words} item ${id}: leave it out`, title: `${words} item ${id}: leave it out` },
    el("span", { className: "frame" }, image),
    el("span", { className: "sign", textContent: isUnlike ? "−" : "+", ariaHidden: "true" }),
    el("span", { className: "cross", ariaHidden: "true" }),
  );
  button.addEventListener("click", () => drop(id));
  return { id, image, item: el("li", { className: isUnlike ? "less" : "more" }, button) };
}

/** The view with an item among those that the hits should (not) resemble; pressed again, it is left out. */
export function toggled({ like, unlike }, id, isUnlike) {
  const own = isUnlike ? unlike : like;
  const others = [like, unlike].map((ids) => ids.filter((one) => one !== id));
  if (!own.includes(id)) others[isUnlike ? 1 : 0].push(id);
  return { like: others[0], unlike: others[1] };
}
