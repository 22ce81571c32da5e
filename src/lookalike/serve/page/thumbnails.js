// Thumbnails of items. An <img> cannot send a key, so thumbnails are fetched if the service requires one.

import { ask, keys } from "./api.js";

const MEASURED = 6; // thumbnails whose shape decides the shape of all tiles
const MEASURE_MS = 400; // that they may take to load
const FRAMES = [3 / 4, 1, 4 / 3, 3 / 2]; // width by height
const MAX_CROP = 0.3; // share of a thumbnail that may be cut off to fill its frame
const FRAME = "lookalike-frame";

/** The path of an item's thumbnail. */
export function pathOf(id) {
  return `v1/items/${id}/thumbnail`;
}

/** A URL that <img> can show. `isOwn`: it must be revoked. */
export async function addressOf(id, signal) {
  if (!keys.get("read") && !keys.get("write")) return { url: pathOf(id), isOwn: false };
  const blob = await (await ask(pathOf(id), { signal })).blob();
  return { url: URL.createObjectURL(blob), isOwn: true };
}

/** Show a thumbnail in an <img>; its frame gets the class "loaded" or "missing". */
export async function load(image, id, signal) {
  const frame = image.parentElement;
  let address;
  try {
    address = await addressOf(id, signal);
    image.src = address.url;
    await image.decode();
    const shape = image.naturalWidth / image.naturalHeight;
    const room = frame.clientWidth / frame.clientHeight;
    frame.classList.toggle("filled", 1 - Math.min(shape / room, room / shape) < MAX_CROP);
    frame.classList.add("loaded");
  } catch {
    if (!signal?.aborted) frame.classList.add("missing");
  } finally {
    if (address?.isOwn) URL.revokeObjectURL(address.url);
  }
}

/**
 * The shape of the tiles, width by height, that fits most thumbnails. It is measured once, from the first hits, before the
 * layout, so that nothing moves when the thumbnails arrive.
 */
export async function frameOf(ids) {
  try {
    const known = Number(sessionStorage.getItem(FRAME));
    if (known > 0) return known;
  } catch {
    // no storage: measure again
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
      // the others decide
    } finally {
      if (address?.isOwn) URL.revokeObjectURL(address.url);
    }
  }));
  await Promise.race([all, new Promise((done) => setTimeout(done, MEASURE_MS))]);
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
