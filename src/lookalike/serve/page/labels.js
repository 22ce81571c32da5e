// The filter by label: a list with a search field, and a chip for each selected label.

import { at, count, el } from "./format.js";

const MAX_LABELS = 1000; // in the response of /v1/about; the gallery may have more

export class LabelFilter {
  #known = []; #chosen = new Set(); #changed;

  /** @param {(labels: string[]) => void} changed called when the user changes the selection */
  constructor(changed) {
    this.#changed = changed;
    const button = at("labels-button");
    button.addEventListener("click", () => this.#open(at("labels-panel").hidden));
    at("labels-close").addEventListener("click", () => this.#open(false, true));
    at("labels-search").addEventListener("input", () => this.#list());
    at("labels-list").addEventListener("change", (event) => this.#choose(event.target.value, event.target.checked));
    at("labels-clear").addEventListener("click", () => this.#clear());
    at("labels-panel").addEventListener("keydown", (event) => this.#walk(event));
    at("chips").addEventListener("click", (event) => {
      const chip = event.target.closest("button");
      if (!chip) return;
      this.#choose(chip.dataset.label, false);
      (at("chips").querySelector("button") ?? button).focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("#labels")) this.#open(false);
    });
    at("labels").addEventListener("focusout", (event) => {
      if (event.relatedTarget && !event.relatedTarget.closest("#labels")) this.#open(false);
    });
  }

  /** Set the labels of the gallery: [{label, count}]. */
  know(labels) {
    this.#known = labels;
    at("labels").hidden = labels.length === 0;
    if (!at("labels-panel").hidden) this.#list();
  }

  /** Select labels. */
  set(labels) {
    this.#chosen = new Set(labels);
    this.#show();
  }

  #choose(label, isChosen) {
    if (isChosen) this.#chosen.add(label);
    else this.#chosen.delete(label);
    this.#show();
    this.#changed([...this.#chosen]);
  }

  #clear() {
    this.#chosen.clear();
    this.#show();
    this.#list();
    at("labels-search").focus();
    this.#changed([]);
  }

  #show() {
    const number = this.#chosen.size;
    at("labels-button").textContent = number ? count(number, "label") : "All labels";
    at("labels-clear").hidden = number === 0;
    at("chips").replaceChildren(...[...this.#chosen].map((label) =>
      el("li", {}, el("button", { type: "button", dataset: { label }, "aria-label": `Remove the filter ${label}` },
        el("span", { textContent: label }), el("span", { className: "cross", "aria-hidden": "true" })))));
    at("chips").hidden = number === 0;
    for (const box of at("labels-list").querySelectorAll("input")) box.checked = this.#chosen.has(box.value);
  }

  #open(isOpen, returns = false) {
    const panel = at("labels-panel");
    if (panel.hidden === !isOpen) return;
    panel.hidden = !isOpen;
    at("labels-button").setAttribute("aria-expanded", isOpen);
    if (isOpen) {
      at("labels-search").value = "";
      this.#list();
      at("labels-search").focus();
    } else if (returns) {
      at("labels-button").focus();
    }
  }

  #list() {
    const text = at("labels-search").value.trim();
    const found = this.#known.filter(({ label }) => plain(label).includes(plain(text)));
    const extra = [...this.#chosen].filter((label) => !this.#known.some((one) => one.label === label));
    const rows = [...(text ? [] : extra.map((label) => ({ label, count: null }))), ...found];
    if (text && this.#known.length >= MAX_LABELS && !this.#known.some(({ label }) => label === text)) {
      rows.push({ label: text, count: null }); // a rare label that the server did not list
    }
    at("labels-list").replaceChildren(...rows.map(({ label, count: many }) => el("label", {},
      el("input", { type: "checkbox", value: label, checked: this.#chosen.has(label) }),
      el("span", { textContent: label }),
      many === null ? null : el("span", { className: "fine", textContent: many.toLocaleString("en") }))));
    at("labels-none").hidden = rows.length > 0;
    at("labels-found").textContent = text ? count(rows.length, "label") : "";
  }

  #walk(event) {
    if (event.key === "Escape") {
      event.stopPropagation();
      this.#open(false, true);
    }
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    const stops = [at("labels-search"), ...at("labels-list").querySelectorAll("input")];
    const there = stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    stops[Math.min(stops.length - 1, Math.max(0, there))].focus();
  }
}

/** Remove case and accents, so that "cafe" finds "Café". */
function plain(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}
