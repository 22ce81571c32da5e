// The panel of the question: its picture, its name, and what may be done with it.

import { Trouble } from "./api.js";
import { addressOf } from "./thumbnails.js";
import { at, el, size } from "./words.js";

const TALLEST = 0.8; // width by height of the frame
const WIDEST = 1.8;

/** Show a picture of the person's own, at once. */
export function showPicture(file) {
  name("Your picture", [file.name, size(file.size)].filter(Boolean).join(" · "));
  const image = show(URL.createObjectURL(file), true, "The picture you asked about");
  image.addEventListener("load", () => {
    if (image.isConnected) at("subtitle").textContent += ` · ${image.naturalWidth} × ${image.naturalHeight}`;
  });
}

/** Show an item of the collection, once `opened` says that a key, if one is asked for, is there. Its name comes later. */
export async function showItem(id, opened, signal) {
  name(`Item ${id}`, "of the collection");
  show("", false, "");
  try {
    await opened;
    const { url, isOwn } = await addressOf(id, signal);
    if (!signal.aborted) show(url, isOwn, `Item ${id} of the collection`);
  } catch {
    if (!signal.aborted) at("picture").classList.add("missing"); // the search says what is amiss
  }
}

/** What the collection calls an item. */
export function showItemName({ id, label, name: file }) {
  name(label ?? file ?? `Item ${id}`, `Item ${id} of the collection`);
}

function name(title, subtitle) {
  at("title").textContent = title;
  at("subtitle").textContent = subtitle;
  document.title = `${title} · Lookalike`;
}

/** The frame takes the picture's own shape, within limits, once that is known. */
function show(url, isOwn, words) {
  const frame = at("picture");
  const image = el("img", { alt: words });
  image.addEventListener("load", () => {
    if (!image.isConnected) return;
    const shape = image.naturalWidth / image.naturalHeight;
    frame.style.setProperty("--shape", Math.min(WIDEST, Math.max(TALLEST, shape)));
    frame.classList.add("loaded");
  });
  image.addEventListener("error", () => image.isConnected && frame.classList.add("missing"));
  for (const event of ["load", "error"]) image.addEventListener(event, () => isOwn && URL.revokeObjectURL(url));
  frame.className = "";
  frame.replaceChildren(image);
  if (url) image.src = url;
  return image;
}

/** Which forms there are: a picture may be added, an item removed, by whom the service lets. */
export function offerForms(question, about) {
  const mayWrite = about.gallery !== null && about.keys.write !== "off";
  at("add").hidden = !mayWrite || !question.file;
  at("remove").hidden = !mayWrite || !question.id;
}

/** As they are before anything was done. */
export function resetForms() {
  for (const id of ["add", "remove", "sure", "done"]) at(id).hidden = true;
  at("add").open = false;
  at("add-label").value = "";
  at("add-button").disabled = false;
}

/** Say what was done, and to who listens, too. */
export function done(...words) {
  for (const id of ["add", "remove", "sure"]) at(id).hidden = true;
  at("done").replaceChildren(...words);
  at("done").hidden = false;
  at("done").focus({ preventScroll: true });
}

/** Ask whether an item is to be removed, or stop asking. */
export function askRemoval(isAsked) {
  at("sure").hidden = !isAsked;
  at("remove").hidden = isAsked;
  at(isAsked ? "keep" : "remove").focus();
}

/** What is amiss with a file before it is sent, or null. `most`: bytes that the server takes, where that is known. */
export function unfit(file, most) {
  if (file.size === 0) return new Trouble(422, "This file is empty.", "Choose another one.");
  if (most && file.size > most) {
    return new Trouble(413, `This picture has ${size(file.size)}; the server takes ${size(most)} at most.`,
      "Make it smaller, or choose another.");
  }
  return null;
}

/** A file that cannot be opened: a folder, or one that is gone. */
export async function unreadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return null;
  } catch {
    return new Trouble(422, "This file cannot be read.", "It may have been moved, or be a folder: choose it again.");
  }
}
