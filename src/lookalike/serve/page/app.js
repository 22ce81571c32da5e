// The page: a question (a picture or an item), what it is, and what looks like it. One question is open at a time.

import { Trouble, ask, askJson } from "./api.js";
import * as collection from "./collection.js";
import { listen as listenForPictures } from "./intake.js";
import { withKey } from "./keys.js";
import { LabelFilter } from "./labels.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import * as place from "./place.js";
import * as recognised from "./recognised.js";
import * as tally from "./tally.js";
import { Threshold } from "./threshold.js";
import { placeOf } from "./thumbnails.js";
import { Wall } from "./wall.js";
import { at, cosine, count, el } from "./words.js";

const KEPT_PICTURES = 20; // that "back" finds again
const KEPT_ANSWERS = 40;
const SHOWN_COPIES = 3; // of a file that is in the collection more than once
const HOPELESS = [404, 409, 413, 415, 422]; // statuses of questions that would be answered the same again

const pictures = new Map(); // number → File; the number is in the history's state
const answers = new Map(); // what was asked → the answer, so that "back" is at once
let about = null; // what the service has and allows
let learning = null; // the promise of that
let question = null; // {number, file} or {id}, and `key`, its name in `answers`
let view = { ...place.PLAIN };
let found = null; // the answer to the search
let work = new AbortController(); // of the open question
let searching = new AbortController(); // of its latest search

const threshold = new Threshold((chosen) => change({ threshold: chosen }));
const filter = new LabelFilter((labels) => change({ labels }));
const wall = new Wall(at("wall"), (id) => place.write(id, view), (id) => go({ id }));

// What the service is.

function learn() {
  learning ??= withKey("read", () => askJson("v1/about", { waiting: notice.waiting })).then(showAbout).catch((error) => {
    learning = null;
    throw error;
  });
  return learning;
}

function showAbout(answer) {
  notice.quiet();
  about = answer;
  const { gallery, model } = about;
  document.body.dataset.gallery = gallery === null ? "none" : "some";
  at("reach").textContent = reach(gallery, model);
  at("model").textContent = model.name;
  at("rows").textContent = gallery === null ? "no collection" : count(gallery.rows, "picture");
  at("version").textContent = `Lookalike ${about.version}`;
  threshold.know(gallery?.threshold ?? null, gallery?.calibrated_on ?? "");
  filter.know(gallery?.labels ?? []);
  collection.offerLabels(gallery?.labels ?? []);
  showView();
}

function reach(gallery, model) {
  const kinds = model.classes ? `Knows ${count(model.classes, "kind")} of things` : "Compares pictures, and names none";
  if (gallery === null) return `${kinds}. There is no collection here to compare with.`;
  if (gallery.rows === 0) return `${kinds}. The collection is empty still.`;
  return `${kinds}, and has ${count(gallery.rows, "picture")} to compare with.`;
}

function showView() {
  filter.set(view.labels);
  threshold.set(view.threshold);
  tally.offerSteps(view.k, about?.limits.max_answers ?? Infinity);
}

// Questions: where they come from.

function take(file) {
  const trouble = panel.unfit(file, about?.limits.max_body_bytes);
  if (trouble) {
    notice.fail(trouble);
    return;
  }
  const number = Date.now();
  pictures.set(number, file);
  forgetBeyond(pictures, KEPT_PICTURES);
  go({ number, file });
}

/** Open a question that is new: it becomes the last step of the history. */
function go(next) {
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  history.pushState({ number: next.number ?? null, scroll: 0 }, "", place.write(next.id ?? null, view));
  open(next);
}

/** Open what the address and the history's state say: at the start, and after "back". */
function follow() {
  const { id, view: asked } = place.read(location.search);
  const { number = null, scroll = 0 } = history.state ?? {};
  view = asked;
  showView();
  if (pictures.has(number)) open({ number, file: pictures.get(number) }, scroll);
  else if (id !== null) open({ id }, scroll);
  else begin();
}

/** The view has changed: labels, threshold, how many. The question stays. */
function change(part) {
  view = { ...view, ...part };
  history.replaceState(history.state, "", place.write(question?.id ?? null, view));
  wall.readdress();
  showView();
  if ("threshold" in part) limit();
  else search();
}

// Questions: how they are answered.

function begin() {
  work.abort();
  question = null;
  document.title = "Lookalike";
  document.body.dataset.stage = "start";
  notice.clear();
  notice.quiet();
  notice.hush();
  wall.clear();
  learn().catch((error) => failed(error, begin));
}

async function open(next, scroll = 0) {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  question = { ...next, key: next.file ? `picture ${next.number}` : `item ${next.id}`, spoken: "" };
  found = null;
  document.body.dataset.stage = "asked";
  at("facts").replaceChildren();
  notice.clear();
  notice.quiet();
  notice.hush();
  tally.clear();
  at("same").hidden = true;
  panel.resetForms();
  recognised.say("");
  wall.clear();
  if (next.file) panel.showPicture(next.file);
  else panel.showItem(next.id, learn(), signal);
  scrollTo(0, 0);
  at("title").focus({ preventScroll: true });
  try {
    await learn();
    if (next.file) {
      const trouble = panel.unfit(next.file, about.limits.max_body_bytes) ?? (await panel.unreadable(next.file));
      if (trouble) throw trouble;
    }
    if (signal.aborted) return;
    await Promise.all([recognise(signal), search(), next.id ? facts(signal) : null]);
    if (signal.aborted) return;
    panel.offerForms(question, about);
    if (scroll) scrollTo(0, scroll);
  } catch (error) {
    if (!signal.aborted) failed(error, () => open(next, scroll));
  }
}

async function recognise(signal) {
  if (about.model.classes === 0) {
    recognised.say("This model compares pictures; it has no names for what they show.");
    return;
  }
  const answer = await cached(`what ${question.key}`, async () => {
    const body = question.file ?? await (await withKey("read", () => ask(placeOf(question.id), { signal }))).blob();
    return withKey("read", () => askJson("v1/predict?k=5", { method: "POST", body, signal, waiting: notice.waiting }));
  });
  if (signal.aborted) return;
  recognised.show(answer, about.model.unknown_threshold);
  question.spoken = recognised.spoken(answer);
  tellSoon();
}

/** Search, with everything but the threshold: what is below that is only hidden, so that the slider is at once. */
async function search() {
  searching.abort();
  searching = new AbortController();
  if (!question || !about || about.gallery === null) return;
  const signal = AbortSignal.any([searching.signal, work.signal]);
  const asked = question;
  const query = new URLSearchParams({ k: Math.min(view.k, about.limits.max_answers ?? view.k), threshold: "none" });
  for (const label of view.labels) query.append("label", label);
  if (view.exact) query.set("exact", "true");
  if (asked.id) query.set("id", asked.id);
  at("answers").setAttribute("aria-busy", "true");
  try {
    const answer = await cached(`${asked.key} ${query}`, () => withKey("read", () =>
      askJson(`v1/search?${query}`, { method: "POST", body: asked.file, signal, waiting: notice.waiting })));
    if (signal.aborted) return;
    notice.quiet();
    found = answer;
    showSame(answer.same);
    await wall.show(answer.hits);
    if (!signal.aborted) limit();
  } catch (error) {
    if (!signal.aborted) failed(error, found ? search : () => open(asked));
  } finally {
    if (!signal.aborted) at("answers").removeAttribute("aria-busy");
  }
}

async function facts(signal) {
  const item = await collection.factsOf(question.id, { signal, waiting: notice.waiting });
  if (signal.aborted) return;
  panel.showItemName(item);
  collection.showFacts(item);
}

async function cached(name, question) {
  const answer = answers.get(name) ?? (await question());
  answers.set(name, answer);
  forgetBeyond(answers, KEPT_ANSWERS);
  return answer;
}

function forgetBeyond(map, most) {
  for (const key of map.keys()) {
    if (map.size <= most) return;
    map.delete(key);
  }
}

function failed(error, retry) {
  const status = error instanceof Trouble ? error.status : 0;
  if (question && !at("what").querySelector(".number")) recognised.say("No answer.");
  if (status === 401) notice.fail(error, retry, "Enter the key");
  else notice.fail(error, HOPELESS.includes(status) ? null : retry);
}

// What was found.

/** Show as many of the hits as are alike enough. */
function limit() {
  if (!found) return;
  const { hits } = found;
  const least = threshold.leastOf(view.threshold);
  const shown = wall.limit(least);
  const most = Math.min(tally.STEPS.at(-1), about.limits.max_answers ?? Infinity, about.gallery.rows);
  tally.show(found, shown, least, about.gallery.rows, hits.length >= view.k && view.k < most);
  if (shown) at("nothing").hidden = true;
  else if (hits.length) tally.nothing(`Nothing here is as alike as ${cosine(least)}.`, `The closest has ${cosine(hits[0].score)}.`, `Lower it to see the closest ${hits.length}`, showAll);
  else if (view.labels.length) tally.nothing(`No other picture has ${view.labels.length === 1 ? "this label" : "one of these labels"}.`, "", "Look at all labels", () => change({ labels: [] }));
  else if (question.id || found.same.length) tally.nothing("This is the only picture of the collection.");
  else if (about.keys.write === "off") tally.nothing("The collection is empty.", "Fill it with: lookalike gallery add GALLERY PICTURES");
  else tally.nothing("The collection is empty.", "Add this picture as its first.");
  tellSoon();
}

/** Say which items are of the very file that was asked with: they are not among the look-alikes. */
function showSame(hits) {
  const links = hits.slice(0, SHOWN_COPIES).map(({ id, label, name }) => linkTo(id, name ?? label ?? `item ${id}`));
  const words = links.flatMap((link, place) => (place ? [", ", link] : [link]));
  at("same").replaceChildren("The very same file is in the collection: ", ...words, hits.length > links.length ? " …" : ".");
  at("same").hidden = hits.length === 0;
}

function linkTo(id, textContent) {
  const link = el("a", { href: place.write(id, view), textContent });
  link.addEventListener("click", (click) => {
    click.preventDefault();
    go({ id });
  });
  return link;
}

/** Lower the threshold so far that every hit is shown. */
function showAll() {
  const last = found.hits.at(-1).score;
  change({ threshold: last > 0.01 ? Math.floor(100 * last) / 100 : "none" });
}

function tellSoon() {
  notice.tellSoon(() => {
    const alike = found ? tally.spoken(found, wall.limit(threshold.leastOf(view.threshold))) : "";
    return [question?.spoken, alike].filter(Boolean).join(" ");
  });
}

// The collection: adding and removing.

async function addPicture(event) {
  event.preventDefault();
  const asked = question;
  at("add-button").disabled = true;
  notice.clear();
  try {
    const { id, added, label } = await collection.add(asked.file, at("add-label").value.trim(), { waiting: notice.waiting });
    changed();
    if (question !== asked) return;
    panel.done(added ? "Added as " : "It was there already, as ", linkTo(id, `item ${id}`), label ? `, ${label}.` : ".");
    await search();
  } catch (error) {
    if (question === asked) failed(error, () => at("add-form").requestSubmit());
  } finally {
    notice.quiet();
    at("add-button").disabled = false;
  }
}

async function removeItem() {
  const asked = question;
  notice.clear();
  try {
    await collection.remove(asked.id, { waiting: notice.waiting });
    changed();
    if (question === asked) panel.done("Removed from the collection.");
  } catch (error) {
    if (question === asked) failed(error, removeItem);
  } finally {
    notice.quiet();
  }
}

/** The collection has changed: answers that were kept hold no longer. */
function changed() {
  answers.clear();
  learning = null;
  learn().then(limit, () => {}); // where it fails, the next question says what is amiss
}

history.scrollRestoration = "manual";
notice.listen();
listenForPictures(take, (message, remedy) => notice.fail(new Trouble(422, message, remedy)));
addEventListener("popstate", follow);
at("home").addEventListener("click", (event) => {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  history.pushState(null, "", location.pathname);
  follow();
});
at("many").addEventListener("change", () => change({ k: Number(at("many").value) }));
at("more").addEventListener("click", () => change({ k: tally.STEPS.find((step) => step > view.k) ?? view.k }));
at("lower").addEventListener("click", showAll);
at("exact").addEventListener("click", () => change({ exact: true }));
at("add-form").addEventListener("submit", addPicture);
at("remove").addEventListener("click", () => panel.askRemoval(true));
at("keep").addEventListener("click", () => panel.askRemoval(false));
at("removal").addEventListener("click", removeItem);
at("sure").addEventListener("keydown", (event) => event.key === "Escape" && panel.askRemoval(false));
follow();
