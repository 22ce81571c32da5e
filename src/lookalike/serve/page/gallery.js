// The gallery: get an item, add an image, remove an item.

import { ask, askJson } from "./api.js";
import { withKey } from "./keys.js";
import { at, el, size } from "./format.js";

/** Get an item: {id, label, name, metadata, bytes}. */
export function itemOf(id, options) {
  return withKey("read", () => askJson(`v1/items/${id}`, options));
}

/** Show an item's file name, metadata and size. */
export function showFacts({ name, metadata, bytes }) {
  const rows = [["File", name], ...Object.entries(metadata), ["Size", bytes ? size(bytes) : null]];
  at("facts").replaceChildren(...rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => el("div", {}, el("dt", { textContent: key }), el("dd", { textContent: String(value) }))));
}

/** Add an image. Returns {id, added, label}; `added` is false if the gallery has the same file. */
export async function add(file, label, options) {
  const query = label ? `?label=${encodeURIComponent(label)}` : "";
  const response = await withKey("write", () => askJson(`v1/items${query}`, { ...options, method: "POST", kind: "write", body: file }));
  return response.items[0];
}

/** Remove an item. */
export async function remove(id, options) {
  await withKey("write", () => ask(`v1/items/${id}`, { ...options, method: "DELETE", kind: "write" }));
}

/** Suggest existing labels for a new item. */
export function offerLabels(labels) {
  at("known-labels").replaceChildren(...labels.slice(0, 300).map(({ label }) => el("option", { value: label })));
}
