// The slider of the threshold, with the gallery's calibrated value marked on it. It hides hits and makes no request.

import { at, cosine } from "./format.js";

export class Threshold {
  #calibrated = null;

  /** @param {(threshold: number | "none" | null) => void} changed called when the user moves it */
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

  /** Set the calibrated value, or null, and what it was calibrated on. */
  know(calibrated, on = "") {
    this.#calibrated = calibrated;
    at("mark").hidden = calibrated === null;
    at("mark").style.setProperty("--at", calibrated ?? 0);
    at("threshold-why").textContent = calibrated === null
      ? "The similarity is the cosine of two images' vectors, at most 1. This gallery is not calibrated."
      : `The mark at ${cosine(calibrated)} is calibrated on ${on}: one in a hundred pairs of different labels reaches it.`;
  }

  /** Set the threshold: a cosine, "none", or null for the calibrated value. */
  set(threshold) {
    const least = this.leastOf(threshold);
    const isAny = least === -1;
    const isCalibrated = threshold === null && this.#calibrated !== null;
    const words = isAny ? "any" : cosine(least) + (isCalibrated ? ", calibrated" : "");
    at("threshold").value = isAny ? 0 : least;
    at("threshold").style.setProperty("--at", isAny ? 0 : Math.max(0, least));
    at("threshold").setAttribute("aria-valuetext", isAny ? words : `at least ${words}`);
    at("threshold-value").textContent = words;
    at("calibrated").hidden = this.#calibrated === null || isCalibrated;
  }

  /** The lowest score that a threshold admits; -1 admits all. */
  leastOf(threshold) {
    if (threshold === "none") return -1;
    return threshold ?? this.#calibrated ?? -1;
  }

  #isCalibrated(value) {
    return this.#calibrated !== null && value === Number(this.#calibrated.toFixed(2));
  }
}
