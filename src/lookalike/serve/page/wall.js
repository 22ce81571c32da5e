// The grid of look-alikes: arrow keys move between its links; thumbnails load when they come near the screen.

import { frameOf, load } from "./thumbnails.js";
import { cosine, el } from "./format.js";

const AHEAD = "400px"; // below the screen, where thumbnails are loaded in advance

export class Wall {
  /**
   * @param {HTMLElement} list a <ul>
   * @param {(id: number) => string} addressOf the address of a search from an item
   * @param {(id: number) => void} follow called when a link is followed
   * @param {(id: number, isUnlike: boolean) => void} refine called to search for more, or less, like a hit
   */
  #list; #addressOf; #refine; #hits = []; #tiles = []; #loading = new AbortController();
  #seen = new IntersectionObserver((entries) => this.#appear(entries), { rootMargin: AHEAD });

  constructor(list, addressOf, follow, refine) {
    this.#list = list;
    this.#addressOf = addressOf;
    this.#refine = refine;
    list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) refine(Number(button.closest("li").firstElementChild.dataset.id), button.className === "less");
      const link = event.target.closest("a");
      if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      follow(Number(link.dataset.id));
    });
    list.addEventListener("keydown", (event) => this.#walk(event));
    list.addEventListener("focusin", (event) => this.#stopAt(event.target.closest("li")?.firstElementChild));
  }

  /** Show hits, best first; all of them until `limit` is called. */
  async show(hits) {
    const hadFocus = this.#list.contains(document.activeElement);
    this.clear();
    this.#hits = hits;
    const loading = this.#loading;
    if (hits.length) this.#list.style.setProperty("--frame", await frameOf(hits.map((hit) => hit.id)));
    if (loading.signal.aborted) return;
    this.#tiles = hits.map((hit) => this.#tile(hit));
    this.#list.replaceChildren(...this.#tiles);
    if (!this.#tiles.length) return;
    this.#stopAt(this.#tiles[0].firstElementChild);
    if (hadFocus) this.#tiles[0].firstElementChild.focus({ preventScroll: true });
  }

  /** Hide hits with a lower score. Returns how many are shown. */
  limit(least) {
    let shown = 0;
    this.#hits.forEach((hit, place) => {
      const isAlike = hit.score >= least;
      if (this.#tiles[place]) this.#tiles[place].hidden = !isAlike;
      shown += isAlike;
    });
    return shown;
  }

  /** Update the links, which hold the view. */
  readdress() {
    for (const tile of this.#tiles) {
      const link = tile.firstElementChild;
      link.href = this.#addressOf(Number(link.dataset.id));
    }
  }

  clear() {
    this.#loading.abort();
    this.#loading = new AbortController();
    this.#seen.disconnect();
    this.#hits = [];
    this.#tiles = [];
    this.#list.replaceChildren();
  }

  #tile({ id, score, label, name }) {
    const image = el("img", { alt: "", decoding: "async", draggable: false, dataset: { id } });
    const words = label ?? name ?? "no label";
    const link = el("a", { href: this.#addressOf(id), dataset: { id }, tabIndex: -1, title: name && label ? `${label}\n${name}` : words },
      el("span", { className: "frame" }, image),
      el("span", { className: "words" },
        el("span", { className: label ? "label" : "label none", textContent: words }),
        el("span", { className: "score" }, el("span", { className: "unseen", textContent: " similarity " }), cosine(score)),
      ),
    );
    this.#seen.observe(image);
    const said = `${words}, item ${id}`;
    const refine = el("span", { className: "refine" },
      el("button", { type: "button", className: "more", tabIndex: -1, textContent: "+", title: "More like this (+)", ariaLabel: `More like ${said}` }),
      el("button", { type: "button", className: "less", tabIndex: -1, textContent: "−", title: "Less like this (−)", ariaLabel: `Less like ${said}` }),
    );
    return el("li", {}, link, refine);
  }

  #appear(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#seen.unobserve(target);
      load(target, target.dataset.id, this.#loading.signal);
    }
  }

  /** Keep one link in the tab order, with its buttons; arrow keys lead to the others. */
  #stopAt(link) {
    if (!link) return;
    for (const tile of this.#tiles) {
      for (const one of tile.querySelectorAll("a, button")) one.tabIndex = tile.firstElementChild === link ? 0 : -1;
    }
  }

  #walk(event) {
    const tiles = this.#tiles.filter((tile) => !tile.hidden);
    const here = tiles.indexOf(event.target.closest("li"));
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "+" || event.key === "-") {
      event.preventDefault();
      this.#refine(Number(tiles[here].firstElementChild.dataset.id), event.key === "-");
      return;
    }
    const row = tiles.findIndex((tile) => tile.offsetTop !== tiles[0].offsetTop);
    const columns = row < 0 ? tiles.length : row;
    const steps = {
      ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - columns, ArrowDown: here + columns,
      Home: 0, End: tiles.length - 1,
    };
    const there = steps[event.key];
    if (there === undefined) return;
    event.preventDefault();
    tiles[there]?.firstElementChild.focus();
  }
}
