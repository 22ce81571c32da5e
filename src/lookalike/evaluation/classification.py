"""Classification metrics: functions of arrays of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookalike.errors import InputError
from lookalike.evaluation.calibration import cross_fitted_ece, expected_calibration_error, log_softmax


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Compute the share of images whose class is among the k largest logits.

    Ties count against the model: a prediction is correct only if fewer than k other logits are at least as large as the
    logit of the class. A model that returns equal logits scores 0, not 1.

    Args:
        logits: (N, C) float.
        labels: (N,) int, 0..C-1.
        ks: values of k; values above C are treated as C.

    Returns:
        k to accuracy, 0..1.

    Raises:
        InputError: no images, shapes that do not match, labels out of range, or logits that are not finite.

    >>> top_k_accuracy([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], [1, 2], ks=(1, 3))
    {1: 0.5, 3: 1.0}
    """
    scores, classes = _checked(logits, labels)
    own = scores[np.arange(len(classes)), classes][:, None]  # (N, 1)
    above = (scores >= own).sum(1) - 1  # other logits at least as large, (N,)
    return {k: 1.0 if k >= scores.shape[1] else float((above < k).mean()) for k in ks}


def predictions(logits: ArrayLike) -> NDArray[np.int64]:
    """Return the class with the largest logit of each image, (N,) int64; the lowest class if logits are equal.

    >>> predictions([[0.1, 0.7, 0.2]]).tolist()
    [1]
    """
    return np.asarray(np.asarray(logits).argmax(1), np.int64)


def confusion_matrix(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """Count the images of class i (row) that are predicted as class j (column), (C, C) int64.

    >>> confusion_matrix([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1]).tolist()
    [[1, 1], [0, 1]]
    """
    scores, classes = _checked(logits, labels)
    count = scores.shape[1]
    return np.bincount(classes * count + predictions(scores), minlength=count * count).reshape(count, count)


def per_class_accuracy(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Compute the top-1 accuracy of each class, (C,) float64 in 0..1; NaN for a class without images.

    >>> per_class_accuracy([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1]).tolist()
    [0.5, 1.0]
    """
    matrix = confusion_matrix(logits, labels)
    images = matrix.sum(1)
    shares: NDArray[np.float64] = np.full(len(matrix), np.nan)
    np.divide(matrix.diagonal(), images, out=shares, where=images > 0)
    return shares


def most_confused_pairs(logits: ArrayLike, labels: ArrayLike, top: int = 10) -> list[tuple[int, int, int]]:
    """Return the most confused pairs of classes as (class, other class, mistakes in both directions), most first.

    >>> most_confused_pairs([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    [(0, 1, 2)]
    """
    matrix = confusion_matrix(logits, labels)
    both = np.triu(matrix + matrix.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:top]
    pairs = zip(*np.unravel_index(order, both.shape), strict=True)
    return [(int(i), int(j), int(both[i, j])) for i, j in pairs if both[i, j]]


def chance_level(labels: ArrayLike, num_classes: int) -> float:
    """Return the accuracy without looking at an image: 1 / C, or more if always naming one class gives more.

    >>> chance_level([0, 0, 0, 1], 2)
    0.75
    """
    counts = np.bincount(np.asarray(labels, np.int64))
    return max(1 / num_classes, float(counts.max() / counts.sum()))


def is_at_chance(logits: ArrayLike, labels: ArrayLike) -> bool:
    """Whether the accuracy may be luck: one of `chance_level` reaches it with a probability of 5 % or more.

    >>> is_at_chance([[1.0, 0.0]] * 20, [0, 1] * 10)
    True
    """
    from scipy.stats import binomtest

    scores, classes = _checked(logits, labels)
    right = round(top_k_accuracy(scores, classes, (1,))[1] * len(classes))
    chance = chance_level(classes, scores.shape[1])
    return bool(binomtest(right, len(classes), chance, alternative="greater").pvalue >= 0.05)


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of -log p(class) in nats, where p is the softmax of the logits.

    >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 4)
    0.6931
    """
    scores, classes = _checked(logits, labels)
    return float(-log_softmax(scores)[np.arange(len(classes)), classes].mean())


def summary(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Compute all classification metrics as a JSON-serializable dict.

    Args:
        logits: (N, C) float.
        labels: (N,) int.
        class_names: C names; if given, the result includes the accuracy of each class.
        temperature: if given, the result includes the calibration error of the logits divided by it.

    Returns:
        `n`; `top1`, `top5` and `mean_class_accuracy` in 0..1; `nll` in nats; `ece`, the expected calibration error;
        `ece_cross_fitted`, the error after cross-fitted temperature scaling (see `cross_fitted_ece`); with
        `class_names`, `per_class`, the accuracy by name; with `temperature`, `temperature` and `ece_scaled`.

    Raises:
        InputError: see `top_k_accuracy`.
    """
    scores, classes = _checked(logits, labels)
    top = top_k_accuracy(scores, classes)
    accuracies = per_class_accuracy(scores, classes)
    probabilities = np.exp(log_softmax(scores))
    results: dict[str, Any] = {
        "n": len(classes),
        "top1": top[1],
        "top5": top[5],
        "mean_class_accuracy": float(np.nanmean(accuracies)),
        "nll": negative_log_likelihood(scores, classes),
        "ece": expected_calibration_error(probabilities, classes),
        "ece_cross_fitted": cross_fitted_ece(scores, classes),
    }
    if temperature is not None:
        results["temperature"] = temperature
        results["ece_scaled"] = expected_calibration_error(np.exp(log_softmax(scores / temperature)), classes)
    if class_names is not None:
        known = zip(class_names, accuracies.tolist(), strict=True)
        results["per_class"] = {name: round(share, 4) for name, share in known if share == share}
    return results


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Convert logits to float64 and labels to int64.

    Raises:
        InputError: see `top_k_accuracy`.
    """
    scores, classes = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if scores.ndim != 2 or classes.shape != scores.shape[:1] or not len(classes):
        raise InputError(
            f"logits of shape {scores.shape} and labels of shape {classes.shape} do not fit.",
            "They must be (N, C) and (N,), with N at least 1.",
        )
    if classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise InputError(f"labels must be in 0..{scores.shape[1] - 1}.", "Leave unlabelled images out.")
    if not np.isfinite(scores).all():
        raise InputError("the logits are not all finite numbers.", "The weights are damaged: train again.")
    return scores, classes
