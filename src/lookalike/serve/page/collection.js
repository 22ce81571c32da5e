// The collection: what it has of an item, a picture added to it, an item removed from it.

import { ask, askJson } from "./api.js";
import { withKey } from "./keys.js";
import { at, el, size } from "./words.js";

/** What the collection has of an item: {id, label, name, metadata, bytes}. */
export function factsOf(id, how) {
  return withKey("read", () => askJson(`v1/items/${id}`, how));
}

/** Show an item's facts; an empty list where there are none beyond its label. */
export function showFacts({ name, metadata, bytes }) {
  const rows = [["File", name], ...Object.entries(metadata), ["Size", bytes ? size(bytes) : null]];
  at("facts").replaceChildren(...rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => el("div", {}, el("dt", { textContent: key }), el("dd", { textContent: String(value) }))));
}

/** Add a picture. Returns {id, added, label}: `added` is false where the same file was there. */
export async function add(file, label, how) {
  const query = label ? `?label=${encodeURIComponent(label)}` : "";
  const answer = await withKey("write", () => askJson(`v1/items${query}`, { ...how, method: "POST", kind: "write", body: file }));
  return answer.items[0];
}

/** Remove an item. */
export async function remove(id, how) {
  await withKey("write", () => ask(`v1/items/${id}`, { ...how, method: "DELETE", kind: "write" }));
}

/** Offer the labels that are there when one is typed. */
export function offerLabels(labels) {
  at("known-labels").replaceChildren(...labels.slice(0, 300).map(({ label }) => el("option", { value: label })));
}
