"""Metrics of classification: each against a slow, obvious twin, with ties and classes that have no images."""

from __future__ import annotations

import doctest
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import InputError
from lookalike.evaluation import classification
from lookalike.evaluation.classification import (
    confusion_matrix,
    most_confused_pairs,
    negative_log_likelihood,
    per_class_accuracy,
    predictions,
    summary,
    top_k_accuracy,
)

Scores = tuple[list[list[float]], list[int]]


@st.composite
def scores(draw: st.DrawFn) -> Scores:
    """Logits and labels: few values, so that many are equal; as few as one image, one class, or one class in use."""
    images, count = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    value = st.one_of(st.integers(-2, 2).map(float), st.floats(-30, 30))
    rows = [[draw(value) for _ in range(count)] for _ in range(images)]
    return rows, [draw(st.integers(0, count - 1)) for _ in range(images)]


def rank(row: list[float], label: int) -> int:
    """Where a class comes when the logits are sorted, 0 first; behind all that are equal to it."""
    order = sorted(range(len(row)), key=lambda other: (-row[other], other == label))
    return order.index(label)


def guess(row: list[float]) -> int:
    best = 0
    for other, score in enumerate(row):
        if score > row[best]:
            best = other
    return best


def mistakes(logits: list[list[float]], labels: list[int]) -> Counter[tuple[int, int]]:
    return Counter((label, guess(row)) for row, label in zip(logits, labels, strict=True))


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(classification)
    assert result.attempted >= 6
    assert result.failed == 0


@given(scores(), st.integers(1, 9))
def test_top_k_is_the_rank_in_a_sorted_list(made: Scores, k: int) -> None:
    logits, labels = made
    found = sum(rank(row, label) < k for row, label in zip(logits, labels, strict=True))
    assert top_k_accuracy(logits, labels, ks=(k,)) == {k: pytest.approx(found / len(labels))}


@given(scores())
def test_top_k_grows_with_k_and_ends_at_one(made: Scores) -> None:
    found = list(top_k_accuracy(*made, ks=range(1, 8)).values())
    assert found == sorted(found)
    assert found[-1] == 1.0


@pytest.mark.parametrize("count", [2, 5, 6, 200])
def test_saying_the_same_of_everything_earns_nothing(count: int) -> None:
    shares = top_k_accuracy(np.zeros((7, count)), np.arange(7) % count)
    assert shares == {1: 0.0, 5: 1.0 if count <= 5 else 0.0}


@given(scores())
def test_the_guess_is_the_first_of_the_largest(made: Scores) -> None:
    logits, _ = made
    assert predictions(logits).tolist() == [guess(row) for row in logits]


@given(scores())
def test_the_confusion_matrix_counts_every_image_once(made: Scores) -> None:
    logits, labels = made
    counted = mistakes(logits, labels)
    count = len(logits[0])
    assert confusion_matrix(logits, labels).tolist() == [[counted[i, j] for j in range(count)] for i in range(count)]


@given(scores())
def test_per_class_accuracy_is_the_mean_over_the_images_of_the_class(made: Scores) -> None:
    logits, labels = made
    found = per_class_accuracy(logits, labels)
    for label in range(len(logits[0])):
        right = [guess(row) == label for row, own in zip(logits, labels, strict=True) if own == label]
        assert found[label] == pytest.approx(sum(right) / len(right)) if right else math.isnan(found[label])


@given(scores(), st.integers(1, 30))
def test_confused_pairs_are_counted_both_ways(made: Scores, top: int) -> None:
    logits, labels = made
    counted = mistakes(logits, labels)
    count = len(logits[0])
    both = [(i, j, counted[i, j] + counted[j, i]) for i in range(count) for j in range(i + 1, count)]
    expected = sorted((pair for pair in both if pair[2]), key=lambda pair: (-pair[2], pair[:2]))
    assert most_confused_pairs(logits, labels, top) == expected[:top]


@given(scores())
def test_the_likelihood_is_the_softmax_written_out(made: Scores) -> None:
    logits, labels = made
    losses = [
        math.log(sum(math.exp(score - row[label]) for score in row)) for row, label in zip(logits, labels, strict=True)
    ]
    assert negative_log_likelihood(logits, labels) == pytest.approx(sum(losses) / len(losses), abs=1e-9)


def test_the_likelihood_survives_large_logits() -> None:
    assert negative_log_likelihood([[1e5, 0.0], [0.0, 1e5]], [0, 0]) == pytest.approx(5e4)


def test_a_result_worked_by_hand() -> None:
    """Four images of three classes, the last of which has none; logits are logarithms of probabilities."""
    p = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]
    found = summary(np.log(p), [0, 1, 1, 0], class_names=["cat", "dog", "owl"], temperature=1.0)
    assert (found["n"], found["top1"], found["top5"]) == (4, 0.5, 1.0)
    assert found["mean_class_accuracy"] == 0.5, "of the two classes that have images"
    assert found["nll"] == pytest.approx(-math.log(0.5 * 0.7 * 0.3 * 0.1) / 4)
    assert found["ece"] == pytest.approx((0.5 + 0.3 + 0.6 + 0.8) / 4), "each image is a bin of its own"
    assert found["ece_scaled"] == pytest.approx(found["ece"])
    assert found["temperature"] == 1.0
    assert found["per_class"] == {"cat": 0.5, "dog": 0.5}


@given(scores())
def test_a_summary_is_json_without_nan(made: Scores) -> None:
    logits, labels = made
    names = [f"class {label}" for label in range(len(logits[0]))]
    found = summary(logits, labels, class_names=names, temperature=0.7)
    json.dumps(found, allow_nan=False)
    assert set(found["per_class"]) == {names[label] for label in labels}


def test_what_was_not_asked_for_is_left_out() -> None:
    found = summary([[1.0, 0.0]], [0])
    assert not {"per_class", "temperature", "ece_scaled"} & found.keys()
    with pytest.raises(ValueError, match="zip"):
        summary([[1.0, 0.0]], [0], class_names=["only one"])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), [], "do not fit"),
        (np.zeros(3), [0, 1, 2], "do not fit"),
        (np.zeros((2, 3)), [0], "do not fit"),
        (np.zeros((2, 3)), [[0], [1]], "do not fit"),
        (np.zeros((2, 3)), [0, 3], r"labels must be in 0\.\.2"),
        (np.zeros((2, 3)), [-1, 0], r"labels must be in 0\.\.2"),
        ([[0.0, math.nan]], [0], "finite"),
        ([[0.0, math.inf]], [0], "finite"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [top_k_accuracy, confusion_matrix, per_class_accuracy, most_confused_pairs, negative_log_likelihood, summary],
)
def test_what_cannot_be_measured_is_refused(metric, logits, labels, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message) as caught:
        metric(logits, labels)
    assert caught.value.remedy
