"""Calibration: whether predictions of 80 % are right 80 % of the time, and the temperature that corrects them.

Source: Guo et al., 2017, "On calibration of modern neural networks" (https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_RANGE = (math.log(0.05), math.log(20.0))  # of the temperatures that are searched
KNOWN_SHARE = 0.9  # of the images of known classes that are not called unknown
MIN_IMAGES = 100  # with fewer, no temperature is fitted
MIN_MISTAKES = 10  # with fewer, no temperature below 1 is accepted
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies between `low` (excluded) and `high`: how many, mean confidence, share right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits before the softmax.

    Args:
        value: 1 if it was not fitted.
        reason: why it was not fitted; empty if it was.
    """

    value: float
    reason: str = ""

    @property
    def is_fitted(self) -> bool:
        return not self.reason


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last axis, float64, safe for large logits."""
    scores = np.asarray(logits, np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> list[Bin]:
    """The bins of a reliability diagram, equally wide, empty ones left out.

    Args:
        probabilities: (N, C) float, rows summing to 1.
        labels: (N,) int.
        bins: how many.
    """
    p, classes = np.asarray(probabilities, np.float64), np.asarray(labels)
    confidence = p.max(1)
    right = p.argmax(1) == classes
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = which == number
        if inside.any():
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            found.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), mean, share))
    return found


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """The mean over images of |confidence - accuracy| of their bin, 0..1; 0 is perfect.

    Args:
        probabilities: (N, C) float, rows summing to 1.
        labels: (N,) int.
        bins: how many, equally wide.

    >>> round(expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1]), 6)
    0.3
    """
    found = reliability(probabilities, labels, bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in found) / sum(b.count for b in found)


def fit_temperature(logits: ArrayLike, labels: ArrayLike, min_images: int = MIN_IMAGES) -> Temperature:
    """The temperature of the lowest negative log-likelihood, or 1 if the images do not determine it.

    They do not if there are few of them, or if the likelihood is highest at an end of the range that is searched: if
    every image is classified correctly, for example, any smaller temperature is better. A temperature below 1 raises
    all confidences, also for images of other classes, and only mistakes are evidence against it; at least ten are
    needed. Calibration that is fitted and measured on the same images looks better than it is: see `cross_fitted_ece`.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        min_images: with fewer, the temperature is 1.

    >>> fit_temperature([[2.0, 0.0], [0.0, 2.0]], [0, 1])
    Temperature(value=1.0, reason='2 images are too few, it takes 100')
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    count = len(classes)
    mistakes = int((scores.argmax(1) != classes).sum())
    if count < min_images:
        return Temperature(1.0, f"{_few(count, 'image')}, it takes {min_images}")
    if not mistakes:
        return Temperature(1.0, f"all {count:,} images are recognised, it takes {MIN_MISTAKES} mistakes")
    best = most_likely_temperature(scores, classes)
    low, high = (math.exp(end) for end in LOG_RANGE)
    if not low * 1.01 < best < high / 1.01:
        return Temperature(1.0, f"the best one lies at the end of the range that is searched, {low:g} to {high:g}")
    if best < 1 and mistakes < MIN_MISTAKES:
        return Temperature(1.0, f"{_few(mistakes, 'mistake')}, it takes {MIN_MISTAKES}")
    return Temperature(best)


def _few(count: int, what: str) -> str:
    return f"{count} {what} is too few" if count == 1 else f"{count} {what}s are too few"


def most_likely_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T from 0.05 to 20 with the lowest negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1/T, so it has one minimum in log T; golden-section search finds it.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    rows = np.arange(len(classes))

    def loss(log_t: float) -> float:
        return float(-log_softmax(scores / math.exp(log_t))[rows, classes].mean())

    low, high = LOG_RANGE
    left, right = high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN_RATIO * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN_RATIO * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def unknown_threshold(logits: ArrayLike, temperature: float, known: float = KNOWN_SHARE) -> float:
    """The confidence that a share of the images of known classes reaches.

    Predictions for images of unknown classes are less confident (D. Hendrycks and K. Gimpel, 2017,
    https://arxiv.org/abs/1610.02136), so an image below this threshold may be called unknown; the rest of the known
    share is the price.

    Args:
        logits: (N, C) float, of images that were not trained on.
        temperature: divides the logits.
        known: the share, 0 to 1.

    >>> round(unknown_threshold([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], 1.0, known=0.75), 3)
    0.731
    """
    likeliest = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature)).max(1)
    return float(np.sort(likeliest)[min(int((1 - known) * len(likeliest) + 1e-9), len(likeliest) - 1)])


def cross_fitted_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Calibration error after temperature scaling, cross-fitted: each half uses the temperature of the other half.

    The halves are every second image. A half that does not determine a temperature (see `fit_temperature`; half the
    number of images is enough) leaves the other as it is.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        bins: as for `expected_calibration_error`.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    probabilities = np.exp(log_softmax(scores))
    if fit_temperature(scores, classes).is_fitted:
        for fit, apply in ((0, 1), (1, 0)):
            temperature = fit_temperature(scores[fit::2], classes[fit::2], MIN_IMAGES // 2).value
            probabilities[apply::2] = np.exp(log_softmax(scores[apply::2] / temperature))
    return expected_calibration_error(probabilities, classes, bins)
