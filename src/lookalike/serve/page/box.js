// A part of the query's image: a box that is dragged on it, or moved with the arrow keys.

import { at, el } from "./format.js";

const LEAST = 8; // pixels on the screen: a shorter drag is a click
const STEP = 0.04; // of the image's side, for an arrow key

export class Box {
  /** @param {(box: number[] | null) => void} choose called with left, top, right, bottom in pixels of the upright image */
  #choose; #shape = el("span", { id: "box", tabIndex: 0, role: "img" }); #box = null; #from = null; #frame = at("image");

  constructor(choose) {
    this.#choose = choose;
    this.#frame.addEventListener("pointerdown", (event) => this.#start(event));
    this.#frame.addEventListener("pointermove", (event) => this.#move(event));
    this.#frame.addEventListener("pointerup", (event) => this.#end(event));
    this.#frame.addEventListener("dragstart", (event) => event.preventDefault()); // of the image itself
    this.#frame.addEventListener("pointercancel", () => this.#cancel());
    this.#shape.addEventListener("keydown", (event) => this.#key(event));
    at("part").addEventListener("click", () => this.#toggle());
    addEventListener("resize", () => this.#draw());
  }

  /** Allow a box on the image of the query, or not; there is none at first. */
  offer(isAllowed) {
    this.#box = null;
    this.#from = null;
    if (isAllowed) this.#frame.dataset.box = "none";
    else delete this.#frame.dataset.box;
    at("part-line").hidden = !isAllowed;
    this.#draw();
  }

  #allowed() {
    return this.#frame.dataset.box !== undefined && this.#frame.classList.contains("loaded");
  }

  /** Where the image lies in its frame: scale and the left and top edge, in pixels of the screen. */
  #place() {
    const image = this.#frame.querySelector("img");
    const { clientWidth: width, clientHeight: height } = this.#frame;
    const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight);
    return {
      image, scale,
      left: (width - scale * image.naturalWidth) / 2,
      top: (height - scale * image.naturalHeight) / 2,
    };
  }

  /** The point of the image under the pointer, in its pixels. */
  #point(event) {
    const { image, scale, left, top } = this.#place();
    const frame = this.#frame.getBoundingClientRect();
    return [
      Math.min(image.naturalWidth, Math.max(0, (event.clientX - frame.left - this.#frame.clientLeft - left) / scale)),
      Math.min(image.naturalHeight, Math.max(0, (event.clientY - frame.top - this.#frame.clientTop - top) / scale)),
    ];
  }

  #start(event) {
    if (!this.#allowed() || event.button || (event.pointerType === "touch" && !this.#box)) return; // a finger scrolls
    event.preventDefault(); // no selection, no drag of the image
    this.#frame.setPointerCapture(event.pointerId);
    this.#from = { point: this.#point(event), before: this.#box, x: event.clientX, y: event.clientY };
  }

  #move(event) {
    if (!this.#from) return;
    const there = this.#point(event);
    const [x, y] = this.#from.point;
    this.#box = [Math.min(x, there[0]), Math.min(y, there[1]), Math.max(x, there[0]), Math.max(y, there[1])];
    this.#draw();
  }

  #end(event) {
    if (!this.#from) return;
    const { x, y, before } = this.#from;
    this.#from = null;
    const isDrag = Math.abs(event.clientX - x) >= LEAST && Math.abs(event.clientY - y) >= LEAST;
    if (isDrag) this.#set(this.#box);
    else {
      this.#box = before;
      this.#draw();
    }
  }

  #cancel() {
    if (!this.#from) return;
    this.#box = this.#from.before;
    this.#from = null;
    this.#draw();
  }

  /** Take a box, in whole pixels and at least one of them, and search with it. */
  #set(box) {
    if (box) {
      const { image } = this.#place();
      const left = Math.min(Math.floor(box[0]), image.naturalWidth - 1);
      const top = Math.min(Math.floor(box[1]), image.naturalHeight - 1);
      box = [
        left, top,
        Math.min(image.naturalWidth, Math.max(Math.ceil(box[2]), left + 1)),
        Math.min(image.naturalHeight, Math.max(Math.ceil(box[3]), top + 1)),
      ];
    }
    this.#box = box;
    this.#draw();
    this.#choose(box);
  }

  #toggle() {
    if (this.#box) {
      this.#set(null);
      return;
    }
    if (!this.#allowed()) return;
    const { image } = this.#place();
    const { naturalWidth: width, naturalHeight: height } = image;
    this.#set([width / 4, height / 4, (3 * width) / 4, (3 * height) / 4]);
    this.#shape.focus();
  }

  /** Arrow keys move the box; with Shift, they move its right and lower edge. Escape takes the whole image. */
  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.key === "Escape") {
      this.#set(null);
      at("part").focus();
    } else if (move && this.#box) {
      event.preventDefault();
      const { image } = this.#place();
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const [dx, dy] = [move[0] * Math.ceil(STEP * width), move[1] * Math.ceil(STEP * height)];
      let [left, top, right, bottom] = this.#box;
      if (event.shiftKey) {
        right = Math.min(width, Math.max(left + 1, right + dx));
        bottom = Math.min(height, Math.max(top + 1, bottom + dy));
      } else {
        const x = Math.min(width - right, Math.max(-left, dx));
        const y = Math.min(height - bottom, Math.max(-top, dy));
        [left, top, right, bottom] = [left + x, top + y, right + x, bottom + y];
      }
      this.#set([left, top, right, bottom]);
    }
  }

  #draw() {
    at("part").textContent = this.#box ? "Use the whole image" : "Search with a part";
    at("part-hint").hidden = this.#box !== null;
    if (this.#frame.dataset.box) this.#frame.dataset.box = this.#box ? "drawn" : "none";
    if (!this.#box) {
      this.#shape.remove();
      return;
    }
    const { scale, left, top } = this.#place();
    const [x0, y0, x1, y1] = this.#box;
    Object.assign(this.#shape.style, {
      left: `${left + scale * x0}px`, top: `${top + scale * y0}px`,
      width: `${scale * (x1 - x0)}px`, height: `${scale * (y1 - y0)}px`,
    });
    this.#shape.setAttribute("aria-label", `The part that is searched with: ${this.#box.map(Math.round).join(", ")}. `
      + "Arrow keys move it, with Shift they resize it, Escape removes it.");
    if (!this.#shape.isConnected) this.#frame.append(this.#shape);
  }
}
