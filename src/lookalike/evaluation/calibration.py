"""Calibration: whether a network that says 80 % is right 80 % of the time, and one number to mend it with.

Source: Guo et al., 2017, "On calibration of modern neural networks" (https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_RANGE = (math.log(0.05), math.log(20.0))  # temperatures looked at
KNOWN = 0.9  # of the images of known classes that should get an answer
MIN_IMAGES = 100  # with fewer, no temperature is fitted
MIN_MISTAKES = 10  # with fewer, no temperature below 1 is believed
GOLDEN = (math.sqrt(5) - 1) / 2


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
    """What divides the logits before the softmax.

    Args:
        value: 1 where the images could not tell it.
        reason: why they could not; empty where the temperature was fitted.
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
    """The temperature of the least negative log-likelihood, or 1 where the images cannot tell it.

    They cannot where there are few of them, and where the likelihood only rises towards an end of the range that is
    searched: when every image is recognised, for example, any smaller temperature looks better. A temperature below 1
    makes all answers surer, also those about images of none of the classes, and only mistakes speak against it: it
    takes ten of them. Fitted and measured on the same images, calibration looks better than it is: see
    `cross_fitted_ece`.

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
    """The temperature T in 0.05..20 whose softmax(logits / T) has the least negative log-likelihood.

    That is convex in 1/T and so has one minimum in log T, found by golden-section search.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    rows = np.arange(len(classes))

    def loss(log_t: float) -> float:
        return float(-log_softmax(scores / math.exp(log_t))[rows, classes].mean())

    low, high = LOG_RANGE
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def unknown_threshold(logits: ArrayLike, temperature: float, known: float = KNOWN) -> float:
    """The probability of the likeliest class that a share of the images of known classes reaches.

    Images of classes that a network never saw have less confident answers (D. Hendrycks and K. Gimpel, 2017,
    https://arxiv.org/abs/1610.02136), so what lies below it may be called unknown, at the known cost.

    Args:
        logits: (N, C) float, of images that were not trained on.
        temperature: that they are divided by.
        known: the share, 0..1.

    >>> round(unknown_threshold([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], 1.0, known=0.75), 3)
    0.731
    """
    likeliest = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature)).max(1)
    return float(np.sort(likeliest)[min(int((1 - known) * len(likeliest) + 1e-9), len(likeliest) - 1)])


def cross_fitted_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Calibration error after temperature scaling, honestly: each half is scaled with the other half's temperature.

    The halves are every second image. A half that cannot tell a temperature (see `fit_temperature`; half as many images
    are asked for) leaves the other as it is.

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
