// What a picture shows: bars of calibrated probabilities, or "unknown" with what it might be.

import { at, duration, el, percent } from "./words.js";

/** Show one result of `POST /v1/predict`; `unknownBelow` is the model's threshold, or null. */
export function show(answer, unknownBelow) {
  const result = answer.predictions[0];
  const [first] = result.classes;
  const list = el("ol", { className: result.unknown ? "bars unsure" : "bars" }, ...result.classes.map(bar));
  const parts = result.unknown ? [el("p", { className: "verdict", textContent: "Unknown" }), doubt(first, unknownBelow)] : [];
  at("what").replaceChildren(...parts, list, el("p", {
    className: "fine", textContent: `Recognised in ${duration(answer.took_ms)}.`,
  }));
}

/** Show that it is being looked at, or a sentence in place of the bars. */
export function say(text) {
  at("what").replaceChildren(text ? el("p", { className: "fine", textContent: text }) : placeholder());
}

/** The answer in one sentence, for who listens. */
export function spoken(answer) {
  const { unknown, classes } = answer.predictions[0];
  const [first] = classes;
  return `${unknown ? "Unknown; it might be" : "It shows"} ${first.label}, ${percent(first.probability)}.`;
}

function doubt(first, unknownBelow) {
  const limit = unknownBelow === null ? "" : `, and below ${percent(unknownBelow)} it does not commit itself`;
  return el("p", {
    className: "fine",
    textContent: `Nothing that this model knows well enough: its best guess has ${percent(first.probability)}${limit}. It might be:`,
  });
}

function bar({ label, probability }) {
  const share = el("span", { className: "share", "aria-hidden": "true" });
  share.style.setProperty("--share", probability);
  return el("li", {},
    el("span", { className: "label", textContent: label, title: label }),
    el("span", { className: "number", textContent: percent(probability) }),
    share,
  );
}

function placeholder() {
  const rows = Array.from({ length: 5 }, () => el("li", {}, el("span", { className: "share" })));
  return el("ol", { className: "bars waiting", "aria-hidden": "true" }, ...rows);
}
