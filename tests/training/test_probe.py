"""The classifier on features, beside scikit-learn's and the nearest mean written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from lookalike.evaluation.calibration import log_softmax
from lookalike.training import probe
from lookalike.training.probe import FOLDS, Kind, fit_probe, folds_of, kind_for


def clouds(each: int, classes: int = 3, dim: int = 12, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Overlapping clouds of unit vectors, far from zero as features are: (N, dim) and labels (N,)."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(0, 0.6, (classes, dim)) + 2
    labels = np.repeat(np.arange(classes), each)
    points = means[labels] + rng.normal(0, 1, (len(labels), dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_logistic_regression(classes: int) -> None:
    x, y = clouds(20, classes)
    new, _ = clouds(30, classes, seed=1)
    found = fit_probe([x], y, classes, kind="logistic")
    scale = np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
    twin = LogisticRegression(C=found.strength, max_iter=5000, tol=1e-8).fit((x - x.mean(0)) / scale, y)
    ours = np.exp(log_softmax(new @ found.weight.T + found.bias))
    np.testing.assert_allclose(ours, twin.predict_proba((new - x.mean(0)) / scale), atol=5e-3)
    assert found.losses[found.strength] == min(found.losses.values())


@pytest.mark.parametrize("kind", ["logistic", "prototypes"])
def test_more_numbers_than_images_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clouds(6, dim=64)
    fast = fit_probe([x, x[:, ::-1]], y, 3, kind=kind)
    monkeypatch.setattr(probe, "_basis", lambda views: np.eye(views[0].shape[1]))
    plain = fit_probe([x, x[:, ::-1]], y, 3, kind=kind)
    assert fast.strength == plain.strength
    np.testing.assert_allclose(fast.weight, plain.weight, atol=0.02 * np.abs(plain.weight).max())
    np.testing.assert_allclose(fast.logits, plain.logits, atol=0.02 * np.abs(plain.logits).max())


def test_prototypes_name_the_class_whose_mean_is_nearest() -> None:
    x, y = clouds(4)
    new, _ = clouds(50, seed=1)
    found = fit_probe([x], y, 3, kind="prototypes")
    means = np.stack([x[y == label].mean(0) for label in range(3)])
    nearest = np.square(new[:, None] - means[None]).sum(2).argmin(1)
    np.testing.assert_array_equal((new @ found.weight.T + found.bias).argmax(1), nearest)


@pytest.mark.parametrize("kind", ["logistic", "prototypes"])
def test_held_out_logits_know_nothing_of_their_image(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 200)).astype(np.float32)  # so many numbers that any labels can be learned by heart
    y = rng.permutation(np.repeat(np.arange(3), 40))
    found = fit_probe([x], y, 3, kind=kind)
    assert ((x @ found.weight.T + found.bias).argmax(1) == y).mean() > 0.8
    assert (found.logits.argmax(1) == y).mean() < 0.5


def test_folds_are_spread_over_the_classes_and_keep_copies_together() -> None:
    labels = np.repeat(np.arange(3), [20, 7, 3])
    groups = np.arange(30)
    groups[[3, 4]], groups[[28, 29]] = 2, 28
    folds = folds_of(labels, groups, seed=1)
    assert set(folds.tolist()) == set(range(FOLDS))
    assert len(set(folds[[2, 3, 4]].tolist())) == len(set(folds[[28, 29]].tolist())) == 1
    for number in range(FOLDS):
        assert set(labels[folds != number].tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(folds, folds_of(labels, groups, seed=1))
    assert (folds != folds_of(labels, groups, seed=2)).any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["logistic", "prototypes"])
def test_copies_with_two_labels_leave_every_class_in_the_rest_of_every_fold(kind: Kind, seed: int) -> None:
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 4])
    folds = folds_of(labels, groups, seed)
    for number in range(int(folds.max()) + 1):
        assert set(labels[folds != number].tolist()) == {0, 1}
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert np.isfinite(fit_probe([x], labels, 2, kind=kind, groups=groups, seed=seed).logits).all()


def test_a_class_of_four_images_gets_prototypes() -> None:
    assert kind_for(np.repeat([0, 1], [50, 5])) == "logistic"
    assert kind_for(np.repeat([0, 1], [50, 4])) == "prototypes"
