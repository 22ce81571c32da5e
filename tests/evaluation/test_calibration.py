"""Calibration: bins against loops, the temperature against a search of every value."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.evaluation import calibration
from lookalike.evaluation.calibration import (
    LOG_RANGE,
    Bin,
    Temperature,
    cross_fitted_ece,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    most_likely_temperature,
    reliability,
    unknown_threshold,
)

Sample = tuple[NDArray[np.float64], NDArray[np.int64]]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Logits, from sharp to nearly equal, and labels that the larger ones tend to be right about."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, count = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    logits = rng.normal(size=(images, count)) * draw(st.sampled_from([0.0, 0.3, 2.0, 20.0]))
    labels = np.where(rng.random(images) < draw(st.floats(0, 1)), logits.argmax(1), rng.integers(0, count, images))
    return logits, labels


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def loss(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    chosen = [row[label] for row, label in zip(log_softmax(logits / temperature), labels, strict=True)]
    return float(-np.mean(chosen))


def slow_bins(p: NDArray[np.float64], labels: NDArray[np.int64], bins: int) -> list[Bin]:
    """Each bin asked for its images: low < confidence <= high."""
    found = []
    for number in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(p, labels, strict=True)
            if math.ceil(row.max() * bins) == number + 1
        ]
        if inside:
            confidence, right = zip(*inside, strict=True)
            low, high = number / bins, (number + 1) / bins
            found.append(Bin(low, high, len(inside), float(np.mean(confidence)), float(np.mean(right))))
    return found


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(calibration)
    assert result.attempted >= 1
    assert result.failed == 0


@given(samples(), st.floats(-1000, 1000))
def test_the_softmax_sums_to_one_and_does_not_see_a_shift(sample: Sample, shift: float) -> None:
    logits, _ = sample
    assert np.exp(log_softmax(logits)).sum(1) == pytest.approx(1)
    assert np.exp(log_softmax(logits)) == pytest.approx(softmax(logits))
    assert log_softmax(logits + shift) == pytest.approx(log_softmax(logits), abs=1e-9)


def test_the_softmax_survives_large_logits() -> None:
    assert log_softmax([[1e4, 0.0], [-1e4, -1e4]]).tolist() == [[0.0, -1e4], [-math.log(2), -math.log(2)]]


@given(samples(), st.sampled_from([1, 2, 10, 15]))
def test_the_bins_hold_what_lies_between_their_edges(sample: Sample, bins: int) -> None:
    logits, labels = sample
    p = softmax(logits)
    found = reliability(p, labels, bins)
    assert sum(b.count for b in found) == len(labels)
    assert found == [
        Bin(b.low, b.high, b.count, pytest.approx(b.confidence), pytest.approx(b.accuracy))
        for b in slow_bins(p, labels, bins)
    ]


def test_a_confidence_on_an_edge_belongs_below_it() -> None:
    (found,) = reliability([[0.5, 0.5]], [0], bins=2)
    assert found == Bin(0.0, 0.5, 1, 0.5, 1.0)
    (found,) = reliability([[1.0, 0.0]], [1], bins=4)
    assert found == Bin(0.75, 1.0, 1, 1.0, 0.0)


@given(samples(), st.sampled_from([1, 5, 15]))
def test_the_error_is_the_mean_gap_of_the_bins(sample: Sample, bins: int) -> None:
    logits, labels = sample
    p = softmax(logits)
    gaps = [b.count / len(labels) * abs(b.confidence - b.accuracy) for b in slow_bins(p, labels, bins)]
    found = expected_calibration_error(p, labels, bins)
    assert found == pytest.approx(sum(gaps))
    assert 0 <= found <= 1


def test_the_error_worked_by_hand() -> None:
    """Sure to 0.9 and right twice of three; sure to 0.6 and right once of one."""
    p = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]]
    assert expected_calibration_error(p, [0, 0, 0, 0]) == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.4)
    assert expected_calibration_error([[1.0, 0.0]], [0]) == 0.0
    assert expected_calibration_error([[1.0, 0.0]], [1]) == 1.0


@pytest.mark.parametrize("gap", [0.5, 2.0, 8.0])
def test_the_temperature_worked_by_hand(gap: float) -> None:
    """A gap of d between two logits, right three times of four: best where softmax says 3/4, at T = d / ln 3."""
    logits, labels = np.tile([gap, 0.0], (4, 1)), np.array([0, 0, 0, 1])
    temperature = most_likely_temperature(logits, labels)
    assert temperature == pytest.approx(gap / math.log(3), rel=1e-3)
    assert softmax(logits / temperature)[0, 0] == pytest.approx(0.75, abs=1e-3)


@given(samples())
def test_no_other_temperature_is_better(sample: Sample) -> None:
    logits, labels = sample
    best = loss(logits, labels, most_likely_temperature(logits, labels))
    others = min(loss(logits, labels, math.exp(t)) for t in np.linspace(*LOG_RANGE, 60))
    assert best <= others * (1 + 1e-4) + 1e-6, "as near as a search that ends at 1e-4 in log T can be"


def test_the_temperature_stays_within_its_range() -> None:
    low, high = (math.exp(end) for end in LOG_RANGE)
    assert most_likely_temperature([[1.0, 0.0]] * 4, [0] * 4) == pytest.approx(low, rel=1e-3)
    assert most_likely_temperature([[1.0, 0.0]] * 4, [1] * 4) == pytest.approx(high, rel=1e-3)


def noisy(images: int, mistakes: int, gap: float = 4.0) -> Sample:
    """Two classes, all answers `gap` logits apart, so many of them wrong; the wrong ones spread over both halves."""
    logits, labels = np.tile([gap, 0.0], (images, 1)), np.zeros(images, np.int64)
    labels[np.linspace(0, images - 1, mistakes).round().astype(int)] = 1
    return logits, labels


@pytest.mark.parametrize(
    ("images", "mistakes", "gap", "reason"),
    [
        (99, 25, 4.0, "99 images are too few, it takes 100"),
        (1, 0, 4.0, "1 image is too few, it takes 100"),
        (100, 0, 4.0, "all 100 images are recognised"),
        (500, 1, 1.0, "1 mistake is too few, it takes 10"),
        (500, 9, 1.0, "9 mistakes are too few"),
        (100, 60, 4.0, "the end of the range"),
        (100, 10, 0.1, "the end of the range"),
        (100, 50, 0.0, "the end of the range"),
    ],
)
def test_the_temperature_is_1_where_the_images_cannot_tell_it(
    images: int, mistakes: int, gap: float, reason: str
) -> None:
    found = fit_temperature(*noisy(images, mistakes, gap))
    assert found.value == 1.0
    assert not found.is_fitted
    assert reason in found.reason


@pytest.mark.parametrize(
    ("images", "mistakes", "gap"),
    [(100, 25, 4.0), (100, 10, 1.0), (500, 3, 8.0)],  # the last is flattened: a few mistakes suffice for that
)
def test_the_temperature_is_fitted_where_the_images_tell_it(images: int, mistakes: int, gap: float) -> None:
    logits, labels = noisy(images, mistakes, gap)
    assert fit_temperature(logits, labels) == Temperature(most_likely_temperature(logits, labels))


def test_a_few_hundred_images_that_are_all_recognised_do_not_make_noise_certain() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 300)
    known = 6 * np.eye(6)[labels] + rng.normal(size=(300, 6)) * 0.5
    temperature = fit_temperature(known, labels)
    limit = unknown_threshold(known, temperature.value)
    noise = softmax(rng.normal(size=(2000, 6)) / temperature.value).max(1)
    assert (known.argmax(1) == labels).all()
    assert noise.max() < 0.999
    assert (noise < limit).mean() > 0.95


def test_each_half_is_scaled_by_what_the_other_half_says() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(201, 3)) * 5
    labels = np.where(rng.random(201) < 0.6, logits.argmax(1), rng.integers(0, 3, 201))
    even, odd = most_likely_temperature(logits[::2], labels[::2]), most_likely_temperature(logits[1::2], labels[1::2])
    p = softmax(np.array([row / (odd if number % 2 == 0 else even) for number, row in enumerate(logits)]))
    assert even != odd
    assert cross_fitted_ece(logits, labels) == pytest.approx(expected_calibration_error(p, labels), abs=1e-9)


def test_scaling_mends_a_network_that_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(honest)])
    shouted = 4 * honest
    assert expected_calibration_error(softmax(honest), labels) < 0.03
    assert expected_calibration_error(softmax(shouted), labels) > 0.3
    assert most_likely_temperature(shouted, labels) == pytest.approx(4, rel=0.1)
    assert cross_fitted_ece(shouted, labels) < 0.03


def test_images_that_cannot_tell_a_temperature_are_not_scaled() -> None:
    for sample in (noisy(99, 25), noisy(300, 0), (np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), np.array([0, 1, 1]))):
        logits, labels = sample
        assert cross_fitted_ece(logits, labels) == pytest.approx(expected_calibration_error(softmax(logits), labels))


@given(samples())
def test_nine_in_ten_are_known(sample: Sample) -> None:
    logits, _ = sample
    likeliest = softmax(logits / 2).max(1)
    limit = unknown_threshold(logits, 2.0)
    assert (likeliest >= limit - 1e-12).mean() >= 0.9
    assert any(limit == pytest.approx(p) for p in likeliest)


def test_few_of_the_known_and_many_of_the_others_are_unknown() -> None:
    rng = np.random.default_rng(0)
    known = 6 * np.eye(5)[rng.integers(0, 5, 4000)] + rng.normal(size=(4000, 5))
    others = rng.normal(size=(4000, 5))
    limit = unknown_threshold(known, 1.5)
    assert (softmax(known / 1.5).max(1) < limit).mean() == pytest.approx(0.1, abs=0.001)
    assert (softmax(others / 1.5).max(1) < limit).mean() > 0.8
