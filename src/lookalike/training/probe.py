"""A classifier on frozen features: logistic regression, or class prototypes; functions of arrays.

Its strength is chosen by cross-validation, and the logits that each image got while it was held out tell how good the
classifier is. Images that are copies of one another are held out together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lookalike.evaluation.calibration import log_softmax
from lookalike.hardware import cores

Kind = Literal["logistic", "prototypes"]
Weights = tuple[NDArray[np.float64], NDArray[np.float64]]  # (C, D) and (C,)

MIN_LOGISTIC = 5  # images that every class must have for logistic regression; prototypes are for fewer
FOLDS = 5
STRENGTHS: dict[Kind, tuple[float, ...]] = {  # ascending; for features whose mean squared length is 1
    "logistic": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "prototypes": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
}
MAX_WORSE = 2  # strengths in a row with a higher loss, after which larger ones are not tried
MAX_ITERATIONS = 300


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features, and how well it did on images that were held out.

    Args:
        weight: (C, D) float32.
        bias: (C,) float32.
        logits: (N, C) float32, of each image by the classifier of the other folds.
        kind: "logistic" or "prototypes".
        strength: that was chosen: C of the logistic regression, or the scale of the prototypes' logits.
        folds: number of parts of the cross-validation.
        losses: negative log-likelihood of the held-out images for each strength that was tried, in nats.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    logits: NDArray[np.float32]
    kind: Kind
    strength: float
    folds: int
    losses: dict[float, float]


def kind_for(labels: NDArray[np.int64]) -> Kind:
    """Logistic regression, or prototypes if a class has fewer than `MIN_LOGISTIC` images."""
    return "logistic" if np.unique(labels, return_counts=True)[1].min() >= MIN_LOGISTIC else "prototypes"


def fit_probe(
    views: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    kind: Kind,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Probe:
    """Fit a classifier to features; its strength is the one with the lowest loss on held-out images.

    Args:
        views: features of the same N images, (N, D) each: of the images themselves, and of changed ones such as their
            mirror images. All of them are fitted to, only the first are measured.
        labels: (N,), 0 to `num_classes` - 1. Every class occurs in two groups at least.
        num_classes: C.
        kind: "logistic": multinomial logistic regression. "prototypes": the class whose mean is nearest; the logits are
            -s |x - mean|² / 2 up to a constant, with the scale s as strength.
        groups: (N,), equal for images that are held out together; None: none are.
        seed: of the folds.
    """
    center = np.mean([view.mean(0) for view in views], axis=0, dtype=np.float64)
    centered = [view - center.astype(np.float32) for view in views]  # a linear classifier with a bias stays the same
    scale = float(np.sqrt(np.mean([np.square(view).sum(1).mean(dtype=np.float64) for view in centered]))) or 1.0
    basis = _basis(centered)
    rotated = [np.ascontiguousarray((view @ basis.astype(np.float32)) / np.float32(scale)) for view in centered]
    del centered
    held_out = folds_of(labels, np.arange(len(labels)) if groups is None else groups, seed)
    strengths = STRENGTHS[kind]
    fitted = _prototypes if kind == "prototypes" else _logistic

    def path(chosen: NDArray[np.bool_]) -> Iterator[Weights]:
        """Classifiers of the chosen images, one for each strength, each started from the one before."""
        x = np.concatenate([view[chosen] for view in rotated])
        return fitted(x, np.tile(labels[chosen], len(rotated)), num_classes, strengths)

    numbers = range(int(held_out.max()) + 1)
    paths = [path(held_out != number) for number in numbers]
    losses: list[float] = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as threads:
        for _ in strengths:
            logits = np.empty((len(labels), num_classes), np.float64)
            for number, (weight, bias) in zip(numbers, threads.map(next, paths), strict=True):
                out = held_out == number
                logits[out] = rotated[0][out] @ weight.T + bias
            losses.append(float(-log_softmax(logits)[np.arange(len(labels)), labels].mean()))
            if losses[-1] == min(losses):
                best = logits
            if len(losses) - 1 - int(np.argmin(losses)) == MAX_WORSE:
                break
        chosen = int(np.argmin(losses))
        weight, bias = next(islice(path(np.ones(len(labels), bool)), chosen, None))
    weight = weight @ basis.T / scale  # (C, D), for the features as they came
    bias = bias - weight @ center
    return Probe(
        weight.astype(np.float32),
        bias.astype(np.float32),
        best.astype(np.float32),
        kind,
        strengths[chosen],
        len(numbers),
        dict(zip(strengths, losses, strict=False)),
    )


def _basis(views: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Orthonormal columns (D, R) that span all features, so that R <= D numbers of an image say as much as its D.

    The penalty of logistic regression does not change with a rotation, and neither do distances.
    """
    dim, rows = views[0].shape[1], sum(len(view) for view in views)
    if rows >= dim:
        return np.eye(dim)
    return np.linalg.qr(np.concatenate(views).T.astype(np.float64))[0]


def folds_of(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The fold in which each image is held out, (N,), from 0: each class is spread evenly.

    The images of a group are in one fold, unless they have several labels: then those of each label are in one.

    Every class whose images are in two groups or more is in the rest of every fold.
    """
    from sklearn.model_selection import StratifiedKFold

    _, firsts, of = np.unique(np.stack([groups, labels]), axis=1, return_index=True, return_inverse=True)
    representatives = labels[firsts]
    count = min(FOLDS, int(np.bincount(representatives).max()))
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    fold = np.empty(len(firsts), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # has two, in different folds
        for number, (_, out) in enumerate(splitter.split(np.zeros(len(firsts)), representatives)):
            fold[out] = number
    return fold[of.ravel()]


def _logistic(
    x: NDArray[np.float32], y: NDArray[np.int64], num_classes: int, strengths: Sequence[float]
) -> Iterator[Weights]:
    """Logistic regression at ascending strengths, each started from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at the weakest penalties, which lose
            model.fit(x, y)
        weight, bias = model.coef_, model.intercept_
        if num_classes == 2:  # scikit-learn gives the difference of the two logits
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        yield weight.copy(), bias.copy()


def _prototypes(
    x: NDArray[np.float32], y: NDArray[np.int64], num_classes: int, strengths: Sequence[float]
) -> Iterator[Weights]:
    """Class means, with the logits scaled by each strength."""
    means = np.stack([x[y == label].mean(0, dtype=np.float64) for label in range(num_classes)])
    for strength in strengths:
        yield strength * means, -strength * np.square(means).sum(1) / 2
