// Small pictures of items. A browser's <img> shows no key, so where one is asked for they are fetched with it.

import { ask, keys } from "./api.js";

const MEASURED = 6; // pictures whose shape decides the wall's
const PATIENCE = 400; // milliseconds that they may take
const FRAMES = [3 / 4, 1, 4 / 3, 3 / 2]; // width by height
const MOST_CUT = 0.3; // of a picture, for it to fill its frame
const FRAME = "lookalike-frame";

/** Where an item's small picture is. */
export function placeOf(id) {
  return `v1/items/${id}/thumbnail`;
}

/** An address that <img> can show; `isOwn`: it must be revoked. */
export async function addressOf(id, signal) {
  if (!keys.get("read") && !keys.get("write")) return { url: placeOf(id), isOwn: false };
  const blob = await (await ask(placeOf(id), { signal })).blob();
  return { url: URL.createObjectURL(blob), isOwn: true };
}

/** Show an item in an <img>; it says "loaded" or "missing" in its frame's class. */
export async function load(image, id, signal) {
  const frame = image.parentElement;
  let address;
  try {
    address = await addressOf(id, signal);
    image.src = address.url;
    await image.decode();
    const shape = image.naturalWidth / image.naturalHeight;
    const room = frame.clientWidth / frame.clientHeight;
    frame.classList.toggle("filled", 1 - Math.min(shape / room, room / shape) < MOST_CUT);
    frame.classList.add("loaded");
  } catch {
    if (!signal?.aborted) frame.classList.add("missing");
  } finally {
    if (address?.isOwn) URL.revokeObjectURL(address.url);
  }
}

/**
 * The shape that fits most pictures of the collection, as width by height. It is found once, from the first answer, before
 * a wall is laid out: nothing moves when the pictures arrive.
 */
export async function frameOf(ids) {
  try {
    const known = Number(sessionStorage.getItem(FRAME));
    if (known > 0) return known;
  } catch {
    // no storage: measured again
  }
  const shapes = [];
  const all = Promise.all(ids.slice(0, MEASURED).map(async (id) => {
    const image = new Image();
    let address;
    try {
      address = await addressOf(id);
      image.src = address.url;
      await image.decode();
      shapes.push(image.naturalWidth / image.naturalHeight);
    } catch {
      // another one will do
    } finally {
      if (address?.isOwn) URL.revokeObjectURL(address.url);
    }
  }));
  await Promise.race([all, new Promise((done) => setTimeout(done, PATIENCE))]);
  if (!shapes.length) return 1;
  const middle = shapes.sort((a, b) => a - b)[Math.floor(shapes.length / 2)];
  const frame = FRAMES.reduce((best, one) => (distance(one, middle) < distance(best, middle) ? one : best));
  try {
    sessionStorage.setItem(FRAME, frame);
  } catch {
    // as above
  }
  return frame;
}

function distance(a, b) {
  return Math.abs(Math.log(a / b));
}
