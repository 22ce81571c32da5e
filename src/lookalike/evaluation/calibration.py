"""Calibration: measure whether confidence matches accuracy, and correct it by temperature scaling.

Source: Guo et al., 2017, "On calibration of modern neural networks" (https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_RANGE = (math.log(0.05), math.log(20.0))  # search range of the log temperature
KNOWN_SHARE = 0.9  # share of the images of known classes above the unknown threshold
MIN_IMAGES = 100  # required to fit a temperature
MIN_MISTAKES = 10  # required to accept a temperature below 1
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Bin:
    """Number, mean confidence and accuracy of the images with confidence in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits before the softmax.

    Args:
        value: the temperature; 1 if it was not fitted.
        reason: why it was not fitted; empty if it was fitted.
    """

    value: float
    reason: str = ""

    @property
    def is_fitted(self) -> bool:
        return not self.reason


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Compute the log-softmax over the last axis, float64, without overflow for large logits."""
    scores = np.asarray(logits, np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> list[Bin]:
    """Compute the non-empty bins of a reliability diagram.

    Args:
        probabilities: (N, C) float; each row sums to 1.
        labels: (N,) int.
        bins: number of bins of equal width.
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
    """Compute the mean of |confidence - accuracy| over the bins, weighted by their images; 0..1, 0 is perfect.

    Args:
        probabilities: (N, C) float; each row sums to 1.
        labels: (N,) int.
        bins: number of bins of equal width.

    >>> round(expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1]), 6)
    0.3
    """
    found = reliability(probabilities, labels, bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in found) / sum(b.count for b in found)


def fit_temperature(logits: ArrayLike, labels: ArrayLike, min_images: int = MIN_IMAGES) -> Temperature:
    """Fit the temperature with the lowest negative log-likelihood, or return 1 if the images do not determine it.

    The temperature is 1 if there are too few images, no mistakes, or if the optimum lies at an end of the search range.
    For example, if every prediction is correct, a smaller temperature is always better. A temperature below 1 raises
    all confidences, including those for images of unknown classes, and only mistakes are evidence against it, so it
    requires at least `MIN_MISTAKES` mistakes. Calibration error measured on the images used for fitting is too low; see
    `cross_fitted_ece`.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        min_images: minimum number of images for fitting.

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
    """Find the temperature T in 0.05..20 with the lowest negative log-likelihood of softmax(logits / T).

    The negative log-likelihood is convex in 1/T, so it has one minimum in log T, which golden-section search finds.

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
    """Return the confidence that a given share of the images of known classes reaches.

    Predictions for images of unknown classes are less confident (D. Hendrycks and K. Gimpel, 2017,
    https://arxiv.org/abs/1610.02136), so an image below this threshold can be rejected as unknown. A share `1 - known`
    of the images of known classes is then rejected too.

    Args:
        logits: (N, C) float, of images that were not used for training.
        temperature: divisor of the logits.
        known: share of the images at or above the threshold, 0..1.

    >>> round(unknown_threshold([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], 1.0, known=0.75), 3)
    0.731
    """
    likeliest = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature)).max(1)
    return float(np.sort(likeliest)[min(int((1 - known) * len(likeliest) + 1e-9), len(likeliest) - 1)])


def cross_fitted_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Compute the calibration error after temperature scaling, with the temperature of each half fitted on the other.

    The halves are the images with even and with odd index. If a half does not determine a temperature (see
    `fit_temperature`, here with half of `MIN_IMAGES`), the other half is not scaled.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        bins: number of bins of equal width.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    probabilities = np.exp(log_softmax(scores))
    if fit_temperature(scores, classes).is_fitted:
        for fit, apply in ((0, 1), (1, 0)):
            temperature = fit_temperature(scores[fit::2], classes[fit::2], MIN_IMAGES // 2).value
            probabilities[apply::2] = np.exp(log_softmax(scores[apply::2] / temperature))
    return expected_calibration_error(probabilities, classes, bins)
