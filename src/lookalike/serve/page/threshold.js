// How alike an answer must be: a slider with the gallery's calibrated value marked on it. It hides tiles and asks nothing.

import { at, cosine } from "./words.js";

export class Threshold {
  #calibrated = null;

  /** @param {(threshold: number | "none" | null) => void} changed called when a person has moved it */
  constructor(changed) {
    at("threshold").addEventListener("input", () => {
      const value = Number(at("threshold").value);
      const chosen = value === 0 ? "none" : this.#isCalibrated(value) ? null : value;
      this.set(chosen);
      changed(chosen);
    });
    at("calibrated").addEventListener("click", () => {
      this.set(null);
      changed(null);
      at("threshold").focus();
    });
  }

  /** The calibrated value, or null where the gallery has none, and what it was calibrated on. */
  know(calibrated, on = "") {
    this.#calibrated = calibrated;
    at("mark").hidden = calibrated === null;
    at("mark").style.setProperty("--at", calibrated ?? 0);
    at("threshold-why").textContent = calibrated === null
      ? "The score is the cosine of two pictures' vectors; 1 is the most. This gallery has no threshold calibrated on its own labels."
      : `The mark, ${cosine(calibrated)}, is calibrated on ${on}: one pair in a hundred of different labels reaches it.`;
  }

  /** Show a choice: a cosine, "none", or null for the calibrated value. */
  set(threshold) {
    const least = this.leastOf(threshold);
    const isAny = least === -1;
    const isCalibrated = threshold === null && this.#calibrated !== null;
    const words = isAny ? "any score" : cosine(least) + (isCalibrated ? ", calibrated" : "");
    at("threshold").value = isAny ? 0 : least;
    at("threshold").style.setProperty("--at", isAny ? 0 : Math.max(0, least));
    at("threshold").setAttribute("aria-valuetext", isAny ? words : `at least ${words}`);
    at("threshold-value").textContent = words;
    at("calibrated").hidden = this.#calibrated === null || isCalibrated;
  }

  /** The least score that a choice lets through; -1 is all. */
  leastOf(threshold) {
    if (threshold === "none") return -1;
    return threshold ?? this.#calibrated ?? -1;
  }

  #isCalibrated(value) {
    return this.#calibrated !== null && value === Number(this.#calibrated.toFixed(2));
  }
}
