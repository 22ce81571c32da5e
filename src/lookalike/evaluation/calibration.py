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
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies between `low` (excluded) and `high`: how many, mean confidence, share right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


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


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T in 0.05..20 whose softmax(logits / T) has the least negative log-likelihood.

    That is convex in 1/T and so has one minimum in log T, found by golden-section search. Fitted and measured on the
    same images, calibration looks better than it is: see `cross_fitted_ece`.

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

    The halves are every second image. Fewer than four images are too few to halve: the unscaled error is returned.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        bins: as for `expected_calibration_error`.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels)
    probabilities = np.exp(log_softmax(scores))
    if len(classes) >= 4:
        for fit, apply in ((0, 1), (1, 0)):
            temperature = fit_temperature(scores[fit::2], classes[fit::2])
            probabilities[apply::2] = np.exp(log_softmax(scores[apply::2] / temperature))
    return expected_calibration_error(probabilities, classes, bins)
