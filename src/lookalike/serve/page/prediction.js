// The prediction: bars of calibrated probabilities, or "unknown" with the best guesses.

import { at, count, duration, el, percent } from "./format.js";

const NO_VOTES = "There are no labelled look-alikes to vote.";

/** Show the response of `POST /v1/predict`; `unknownBelow` is the model's threshold, or null. */
export function show(response, unknownBelow) {
  const { unknown, classes } = response.predictions[0];
  const list = el("ol", { className: unknown ? "bars unsure" : "bars" }, ...classes.map(bar));
  const parts = unknown ? [el("p", { className: "verdict", textContent: "Unknown" }), explain(classes[0], unknownBelow)] : [];
  at("what").replaceChildren(...parts, list, el("p", {
    className: "fine", textContent: `Predicted in ${duration(response.took_ms)}.`,
  }));
}

/** Show the response of `POST /v1/vote`: the labels of the image's neighbours in the gallery. */
export function showVote(response) {
  const { labels, neighbours } = response.votes[0];
  if (labels.length === 0) return say(NO_VOTES);
  const list = el("ol", { className: "bars" }, ...labels.map(({ label, share }) => bar({ label, probability: share })));
  at("what").replaceChildren(list, el("p", {
    className: "fine", textContent: `Vote of ${count(neighbours, "labelled look-alike")}, in ${duration(response.took_ms)}.`,
  }));
}

/** The vote in one sentence, for screen readers. */
export function spokenVote(response) {
  const [first] = response.votes[0].labels;
  return first === undefined ? NO_VOTES : `Look-alikes vote for ${first.label}, ${percent(first.share)}.`;
}

/** Show a sentence in place of the bars; without one, that the prediction is being computed. */
export function say(text) {
  at("what").replaceChildren(text ? el("p", { className: "fine", textContent: text }) : placeholder());
}

/** The prediction in one sentence, for screen readers. */
export function spoken(response) {
  const { unknown, classes } = response.predictions[0];
  const [first] = classes;
  return `${unknown ? "Unknown. Best guess:" : "Prediction:"} ${first.label}, ${percent(first.probability)}.`;
}

function explain(first, unknownBelow) {
  const limit = unknownBelow === null ? "" : `, below the threshold of ${percent(unknownBelow)}`;
  return el("p", {
    className: "fine",
    textContent: `The best guess has ${percent(first.probability)}${limit}. The best guesses are:`,
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
