// The panel of the query: its image, its name, and the forms to add or remove it.

import { Trouble } from "./api.js";
import { addressOf } from "./thumbnails.js";
import { at, el, size } from "./format.js";

const TALLEST = 0.8; // width by height of the frame
const WIDEST = 1.8;

/** Show an uploaded image. */
export function showImage(file) {
  name("Your image", [file.name, size(file.size)].filter(Boolean).join(" · "));
  const image = show(URL.createObjectURL(file), true, "The image of the query");
  image.addEventListener("load", () => {
    if (image.isConnected) at("subtitle").textContent += ` · ${image.naturalWidth} × ${image.naturalHeight}`;
  });
}

/** Show words in place of an image. */
export function showWords(text) {
  name(`“${text}”`, "words");
  at("image").hidden = true;
}

/** Show an item of the gallery once `opened` resolves: then a required key is known. Its name comes later. */
export async function showItem(id, opened, signal) {
  name(`Item ${id}`, "in the gallery");
  show("", false, "");
  try {
    await opened;
    const { url, isOwn } = await addressOf(id, signal);
    if (!signal.aborted) show(url, isOwn, `Item ${id} in the gallery`);
  } catch {
    if (!signal.aborted) at("image").classList.add("missing"); // the search reports the error
  }
}

/** Show the name of an item. */
export function showItemName({ id, label, name: file }) {
  name(label ?? file ?? `Item ${id}`, `Item ${id} in the gallery`);
}

function name(title, subtitle) {
  at("title").textContent = title;
  at("subtitle").textContent = subtitle;
  document.title = `${title} · Lookalike`;
}

/** Show an image; its frame takes the image's shape, within limits, once that is known. */
function show(url, isOwn, words) {
  const frame = at("image");
  const image = el("img", { alt: words });
  image.addEventListener("load", () => {
    if (!image.isConnected) return;
    const shape = image.naturalWidth / image.naturalHeight;
    frame.style.setProperty("--shape", Math.min(WIDEST, Math.max(TALLEST, shape)));
    frame.classList.add("loaded");
  });
  image.addEventListener("error", () => image.isConnected && frame.classList.add("missing"));
  for (const event of ["load", "error"]) image.addEventListener(event, () => isOwn && URL.revokeObjectURL(url));
  frame.hidden = false;
  frame.className = "";
  frame.replaceChildren(image);
  if (url) image.src = url;
  return image;
}

/** Show the form to add an image or to remove an item, if the service allows it. */
export function offerForms(query, about) {
  const mayWrite = about.gallery !== null && about.keys.write !== "off";
  at("add").hidden = !mayWrite || !query.file;
  at("remove").hidden = !mayWrite || !query.id;
}

/** Reset the forms. */
export function resetForms() {
  for (const id of ["add", "remove", "sure", "done"]) at(id).hidden = true;
  at("add").open = false;
  at("add-label").value = "";
  at("add-button").disabled = false;
}

/** Show what was done, and move the focus there for screen readers. */
export function done(...words) {
  for (const id of ["add", "remove", "sure"]) at(id).hidden = true;
  at("done").replaceChildren(...words);
  at("done").hidden = false;
  at("done").focus({ preventScroll: true });
}

/** Show or hide the confirmation of a removal. */
export function askRemoval(isAsked) {
  at("sure").hidden = !isAsked;
  at("remove").hidden = isAsked;
  at(isAsked ? "keep" : "remove").focus();
}

/** The error of a file that cannot be sent, or null. `most`: bytes that the server accepts, if known. */
export function unfit(file, most) {
  if (file.size === 0) return new Trouble(422, "This file is empty.", "Choose another file.");
  if (most && file.size > most) {
    return new Trouble(413, `This file has ${size(file.size)}; the server accepts ${size(most)} at most.`,
      "Make the image smaller, or choose another one.");
  }
  return null;
}

/** The error of a file that cannot be opened, or null. */
export async function unreadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return null;
  } catch {
    return new Trouble(422, "This file cannot be read.", "It may be a folder, or have been moved. Choose it again.");
  }
}
