// The page: a query (an uploaded image, words, or an item of the gallery), its prediction, and its look-alikes.

import { Trouble, ask, askJson } from "./api.js";
import { Box } from "./box.js";
import * as gallery from "./gallery.js";
import { listen as listenForImages } from "./upload.js";
import { withKey } from "./keys.js";
import { LabelFilter } from "./labels.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import * as address from "./address.js";
import * as prediction from "./prediction.js";
import * as refine from "./refine.js";
import * as status from "./status.js";
import { Threshold } from "./threshold.js";
import { pathOf } from "./thumbnails.js";
import { Wall } from "./wall.js";
import { at, cosine, count, el } from "./format.js";

const MAX_IMAGES = 20; // uploads that "back" finds again
const MAX_CACHED = 40; // responses
const MAX_COPIES = 3; // links to items with the same file
const FINAL = [404, 409, 413, 415, 422]; // statuses that a second try would not change

const images = new Map(); // number → File; the number is in the history's state
const cache = new Map(); // name of a request → its response, so that "back" is immediate
let about = null; // the response of /v1/about
let loading = null; // the promise of that
let query = null; // {number, file}, {text} or {id}, and `key`, its name in `cache`
let view = { ...address.DEFAULT };
let found = null; // the response of /v1/search
let work = new AbortController(); // of the current query
let searching = new AbortController(); // of its last search

const threshold = new Threshold((chosen) => change({ threshold: chosen }));
const filter = new LabelFilter((labels) => change({ labels }));
const wall = new Wall(at("wall"), (id) => address.write(id, plain()), (id) => go({ id }), (id, isUnlike) => change(refine.toggled(view, id, isUnlike)));
const box = new Box((chosen) => change({ box: chosen }));

// What the service offers.

function load() {
  loading ??= withKey("read", () => askJson("v1/about", { waiting: notice.waiting })).then(showAbout).catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

function showAbout(response) {
  notice.quiet();
  about = response;
  const { gallery: facts, model } = about;
  document.body.dataset.gallery = facts === null ? "none" : "some";
  at("words").hidden = facts === null || !model.text;
  at("reach").textContent = describe(facts, model);
  at("model").textContent = model.name;
  at("items").textContent = facts === null ? "no gallery" : count(facts.items, "image");
  at("version").textContent = `Lookalike ${about.version}`;
  threshold.know(facts?.threshold ?? null, facts?.calibrated_on ?? "");
  filter.know(facts?.labels ?? []);
  gallery.offerLabels(facts?.labels ?? []);
  showView();
}

function describe(facts, model) {
  const classes = model.classes ? `The model knows ${count(model.classes, "class", "classes")}` : "The model compares images and has no classes";
  if (facts === null) return `${classes}. There is no gallery.`;
  if (facts.items === 0) return `${classes}. The gallery is empty.`;
  return `${classes}. The gallery has ${count(facts.items, "image")}.`;
}

/** The view for another query: without what belongs to this one. Words have no threshold; see `viewOf`. */
function plain() {
  return { ...view, threshold: view.text === null ? view.threshold : null, text: null, like: [], unlike: [], box: null };
}

/** The view of a new query. Cosines of words with images are low: a threshold for images would hide all hits. */
function viewOf({ text = null }) {
  return text === null ? plain() : { ...plain(), text, threshold: "none" };
}

function showView() {
  refine.show(view, (id) => change({ like: view.like.filter((one) => one !== id), unlike: view.unlike.filter((one) => one !== id) }));
  filter.set(view.labels);
  threshold.set(view.threshold);
  status.offerSteps(view.k, about?.limits.max_answers ?? Infinity);
}

// Where queries come from.

function take(file) {
  const trouble = panel.unfit(file, about?.limits.max_body_bytes);
  if (trouble) {
    notice.fail(trouble);
    return;
  }
  const number = Date.now();
  images.set(number, file);
  trim(images, MAX_IMAGES);
  go({ number, file });
}

/** Open a new query: it becomes the last entry of the history. */
function go(next) {
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  view = viewOf(next);
  showView();
  history.pushState({ number: next.number ?? null, scroll: 0 }, "", address.write(next.id ?? null, view));
  open(next);
}

/** Open what the address and the history's state say: at the start, and after "back". */
function follow() {
  const { id, view: asked } = address.read(location.search);
  const { number = null, scroll = 0 } = history.state ?? {};
  view = asked;
  showView();
  if (images.has(number)) open({ number, file: images.get(number) }, scroll);
  else if (id !== null) open({ id }, scroll);
  else if (asked.text !== null) open({ text: asked.text }, scroll);
  else begin();
}

/** Change the view of the current query: labels, threshold, number of hits. */
function change(part) {
  view = { ...view, ...part };
  history.replaceState(history.state, "", address.write(query?.id ?? null, view));
  wall.readdress();
  showView();
  if ("threshold" in part) limit();
  else search();
}

// How queries are answered.

function begin() {
  work.abort();
  query = null;
  document.title = "Lookalike";
  document.body.dataset.stage = "start";
  notice.clear();
  notice.quiet();
  notice.hush();
  wall.clear();
  load().catch((error) => failed(error, begin));
}

async function open(next, scroll = 0) {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  query = { ...next, key: next.file ? `image ${next.number}` : next.text ? `text ${next.text}` : `item ${next.id}`, spoken: "" };
  found = null;
  document.body.dataset.stage = "asked";
  at("facts").replaceChildren();
  notice.clear();
  notice.quiet();
  notice.hush();
  status.clear();
  at("same").hidden = true;
  panel.resetForms();
  prediction.say("");
  wall.clear();
  at("what").parentElement.hidden = Boolean(next.text);
  if (next.file) panel.showImage(next.file);
  else if (next.text) panel.showWords(next.text);
  else panel.showItem(next.id, load(), signal);
  box.offer(Boolean(next.file) && about?.gallery !== null);
  scrollTo(0, 0);
  at("title").focus({ preventScroll: true });
  try {
    await load();
    if (next.file) {
      const trouble = panel.unfit(next.file, about.limits.max_body_bytes) ?? (await panel.unreadable(next.file));
      if (trouble) throw trouble;
    }
    if (signal.aborted) return;
    await Promise.all([predict(signal), search(), next.id ? showItem(signal) : null]);
    if (signal.aborted) return;
    panel.offerForms(query, about);
    if (scroll) scrollTo(0, scroll);
  } catch (error) {
    if (!signal.aborted) failed(error, () => open(next, scroll));
  }
}

async function predict(signal) {
  if (query.text) return;
  if (about.model.classes === 0) {
    if (query.file && about.gallery?.labels.length) await vote(signal);
    else prediction.say("This model compares images; it has no classes.");
    return;
  }
  const response = await cached(`predict ${query.key}`, async () => {
    const body = query.file ?? await (await withKey("read", () => ask(pathOf(query.id), { signal }))).blob();
    return withKey("read", () => askJson("v1/predict?k=5", { method: "POST", body, signal, waiting: notice.waiting }));
  });
  if (signal.aborted) return;
  prediction.show(response, about.model.unknown_threshold);
  query.spoken = prediction.spoken(response);
  tellSoon();
}

/** Without classes, the labels of the gallery's nearest items tell what an image shows. */
async function vote(signal) {
  const response = await cached(`vote ${query.key}`, () => withKey("read", () =>
    askJson("v1/vote?k=5", { method: "POST", body: query.file, signal, waiting: notice.waiting })));
  if (signal.aborted) return;
  prediction.showVote(response);
  query.spoken = prediction.spokenVote(response);
  tellSoon();
}

/** Search without a threshold. Hits below it are hidden here, so that the slider takes effect immediately. */
async function search() {
  searching.abort();
  searching = new AbortController();
  if (!query || !about || about.gallery === null) return;
  const signal = AbortSignal.any([searching.signal, work.signal]);
  const current = query;
  const fields = new URLSearchParams({ k: Math.min(view.k, about.limits.max_answers ?? view.k), threshold: "none" });
  for (const label of view.labels) fields.append("label", label);
  if (view.exact) fields.set("exact", "true");
  if (view.text !== null) fields.set("text", view.text);
  for (const id of [current.id, ...view.like]) if (id) fields.append("id", id);
  for (const id of view.unlike) fields.append("unlike", id);
  if (view.box) fields.set("box", view.box.join(","));
  at("results").setAttribute("aria-busy", "true");
  try {
    const response = await cached(`${current.key} ${fields}`, () => withKey("read", () =>
      askJson(`v1/search?${fields}`, { method: "POST", body: current.file, signal, waiting: notice.waiting })));
    if (signal.aborted) return;
    notice.quiet();
    found = response;
    showSame(response.same);
    await wall.show(response.hits);
    if (!signal.aborted) limit();
  } catch (error) {
    if (!signal.aborted) failed(error, found ? search : () => open(current));
  } finally {
    if (!signal.aborted) at("results").removeAttribute("aria-busy");
  }
}

async function showItem(signal) {
  const item = await gallery.itemOf(query.id, { signal, waiting: notice.waiting });
  if (signal.aborted) return;
  panel.showItemName(item);
  gallery.showFacts(item);
}

async function cached(name, request) {
  const response = cache.get(name) ?? (await request());
  cache.set(name, response);
  trim(cache, MAX_CACHED);
  return response;
}

/** Delete the oldest entries beyond `size`. */
function trim(map, size) {
  for (const key of map.keys()) {
    if (map.size <= size) return;
    map.delete(key);
  }
}

function failed(error, retry) {
  const code = error instanceof Trouble ? error.status : 0;
  if (query && !at("what").querySelector(".number")) prediction.say("No prediction.");
  if (code === 401) notice.fail(error, retry, "Enter the key");
  else notice.fail(error, FINAL.includes(code) ? null : retry);
}

// Search results.

/** Show the hits that reach the threshold. */
function limit() {
  if (!found) return;
  const { hits } = found;
  const least = threshold.leastOf(view.threshold);
  const shown = wall.limit(least);
  const most = Math.min(status.STEPS.at(-1), about.limits.max_answers ?? Infinity, about.gallery.items);
  status.show(found, shown, least, about.gallery.items, hits.length >= view.k && view.k < most);
  if (shown) at("nothing").hidden = true;
  else if (hits.length) status.nothing(`No image reaches a similarity of ${cosine(least)}.`, `The most similar one has ${cosine(hits[0].score)}.`, `Show the ${count(hits.length, "most similar image")}`, showAll);
  else if (view.labels.length) status.nothing(`No other image has ${view.labels.length === 1 ? "this label" : "one of these labels"}.`, "", "Show all labels", () => change({ labels: [] }));
  else if (view.like.length || view.unlike.length) status.nothing("No other image is in the gallery.");
  else if (query.id || found.same.length) status.nothing("This is the only image in the gallery.");
  else if (about.keys.write === "off") status.nothing("The gallery is empty.", "Add images: lookalike gallery add GALLERY IMAGES");
  else status.nothing("The gallery is empty.", "You can add this image.");
  tellSoon();
}

/** List the items whose file is identical to the query's: they are not among the look-alikes. */
function showSame(hits) {
  const links = hits.slice(0, MAX_COPIES).map(({ id, label, name }) => linkTo(id, name ?? label ?? `item ${id}`));
  const parts = links.flatMap((link, place) => (place ? [", ", link] : [link]));
  at("same").replaceChildren("This file is already in the gallery: ", ...parts, hits.length > links.length ? " …" : ".");
  at("same").hidden = hits.length === 0;
}

function linkTo(id, textContent) {
  const link = el("a", { href: address.write(id, plain()), textContent });
  link.addEventListener("click", (click) => {
    click.preventDefault();
    go({ id });
  });
  return link;
}

/** Lower the threshold so that every hit is shown. */
function showAll() {
  const last = found.hits.at(-1).score;
  change({ threshold: last > 0.01 ? Math.floor(100 * last) / 100 : "none" });
}

function tellSoon() {
  notice.tellSoon(() => {
    const alike = found ? status.spoken(found, wall.limit(threshold.leastOf(view.threshold))) : "";
    return [query?.spoken, alike].filter(Boolean).join(" ");
  });
}

// Adding and removing items.

async function addImage(event) {
  event.preventDefault();
  const current = query;
  at("add-button").disabled = true;
  notice.clear();
  try {
    const { id, added, label } = await gallery.add(current.file, at("add-label").value.trim(), { waiting: notice.waiting });
    changed();
    if (query !== current) return;
    panel.done(added ? "Added as " : "This file was in the gallery already, as ", linkTo(id, `item ${id}`), label ? `, ${label}.` : ".");
    await search();
  } catch (error) {
    if (query === current) failed(error, () => at("add-form").requestSubmit());
  } finally {
    notice.quiet();
    at("add-button").disabled = false;
  }
}

async function removeItem() {
  const current = query;
  notice.clear();
  try {
    await gallery.remove(current.id, { waiting: notice.waiting });
    changed();
    if (query === current) panel.done("Removed from the gallery.");
  } catch (error) {
    if (query === current) failed(error, removeItem);
  } finally {
    notice.quiet();
  }
}

/** The gallery has changed: drop the cached responses. */
function changed() {
  cache.clear();
  loading = null;
  load().then(limit, () => {}); // the next query reports an error
}

history.scrollRestoration = "manual";
notice.listen();
listenForImages(take, (message, remedy) => notice.fail(new Trouble(422, message, remedy)));
addEventListener("popstate", follow);
at("home").addEventListener("click", (event) => {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  history.pushState(null, "", location.pathname);
  follow();
});
at("words").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("words-text").value.trim();
  if (text) go({ text });
});
at("many").addEventListener("change", () => change({ k: Number(at("many").value) }));
at("more").addEventListener("click", () => change({ k: status.STEPS.find((step) => step > view.k) ?? view.k }));
at("lower").addEventListener("click", showAll);
at("refine-clear").addEventListener("click", () => change({ like: [], unlike: [] }));
at("exact").addEventListener("click", () => change({ exact: true }));
at("add-form").addEventListener("submit", addImage);
at("remove").addEventListener("click", () => panel.askRemoval(true));
at("keep").addEventListener("click", () => panel.askRemoval(false));
at("removal").addEventListener("click", removeItem);
at("sure").addEventListener("keydown", (event) => event.key === "Escape" && panel.askRemoval(false));
follow();
