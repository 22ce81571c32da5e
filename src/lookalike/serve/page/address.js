// The page's address holds the search: `?id=12&text=a+dog&like=5&unlike=7&label=cat&threshold=0.7&k=48`. It can be bookmarked and shared.

/** The default view. `text`: words to search with, or null. `like`, `unlike`: ids of items. `box`: a part of an uploaded image; not in the address. `threshold`: a cosine, "none", or null for the calibrated threshold. */
export const DEFAULT = Object.freeze({
  text: null, labels: Object.freeze([]), threshold: null, k: 24, exact: false, like: Object.freeze([]), unlike: Object.freeze([]), box: null,
});

const MAX_TEXT = 1000; // characters of `text`
const MAX_PARTS = 20; // items in "more like" and in "less like"

function isId(number) {
  return Number.isSafeInteger(number) && number > 0;
}

/** Parse an address: the item's id or null, and the view. Invalid values are replaced by the defaults. */
export function read(search) {
  const fields = new URLSearchParams(search);
  const id = Number(fields.get("id"));
  const ids = (name) => [...new Set(fields.getAll(name).map(Number).filter(isId))].slice(0, MAX_PARTS);
  const like = ids("like");
  const k = Number(fields.get("k"));
  const text = fields.get("threshold");
  const number = text === null || text.trim() === "" ? NaN : Number(text);
  return {
    id: isId(id) ? id : null,
    view: {
      text: fields.get("text")?.trim().slice(0, MAX_TEXT) || null,
      labels: [...new Set(fields.getAll("label").filter((label) => label.trim()))],
      threshold: text === "none" ? "none" : number >= -1 && number <= 1 ? number : null,
      k: Number.isInteger(k) && k > 0 && k <= 1000 ? k : DEFAULT.k,
      exact: fields.get("exact") === "true",
      like,
      unlike: ids("unlike").filter((one) => !like.includes(one)),
      box: null,
    },
  };
}

/** The address of a search, relative to the page. */
export function write(id, view) {
  const fields = new URLSearchParams();
  if (id !== null) fields.set("id", id);
  if (view.text !== null) fields.set("text", view.text);
  for (const one of view.like) fields.append("like", one);
  for (const one of view.unlike) fields.append("unlike", one);
  for (const label of view.labels) fields.append("label", label);
  if (view.threshold !== null) fields.set("threshold", view.threshold);
  if (view.k !== DEFAULT.k) fields.set("k", view.k);
  if (view.exact) fields.set("exact", "true");
  const text = fields.toString();
  return text ? `?${text}` : location.pathname;
}
