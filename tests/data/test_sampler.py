"""Samplers: pure functions of the step, every image in its turn, P x K batches without repeats."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.sampler import BatchSampler, Deck, PKSampler, ShuffledSampler, seeded
from lookalike.errors import InputError


def of_sizes(*sizes: int) -> np.ndarray:
    """Labels of so many images of each class, well mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


LABELS = of_sizes(9, 4, 7, 5, 12, 4, 6)


@given(count=st.integers(1, 30), batch_size=st.integers(1, 70), epochs=st.integers(1, 4), seed=st.integers(0, 2**63))
def test_shuffled_has_every_image_once_an_epoch(count: int, batch_size: int, epochs: int, seed: int) -> None:
    made = ShuffledSampler(count, batch_size, seed)
    batches = [made.rows(step) for step in range(-(-count * epochs // batch_size))]
    assert {len(rows) for rows in batches} == {batch_size}
    stream = np.concatenate(batches)
    assert stream.dtype == np.int64
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize(
    "make",
    [lambda seed: ShuffledSampler(23, 6, seed), lambda seed: PKSampler(LABELS, 4, 3, seed)],
    ids=["shuffled", "balanced"],
)
def test_a_batch_is_a_function_of_seed_and_step(make: type[BatchSampler]) -> None:
    made = make(0)
    forwards = [made.rows(step).tolist() for step in range(40)]
    for step in (39, 0, 17, 16, 3, 38, 39, 1):
        assert made.rows(step).tolist() == make(0).rows(step).tolist() == forwards[step]
    assert len({tuple(rows) for rows in forwards}) == 40
    assert make(1).rows(0).tolist() != forwards[0]
    assert make(0).rows(10**9).shape == (made.batch_size,)


def test_epochs_are_counted_in_images() -> None:
    made = PKSampler(LABELS, 2, 2, 0)
    assert len(made) == len(LABELS) == 47
    assert made.batch_size == 4
    assert [made.epoch_of(step) for step in (0, 47, 94)] == [0.0, 4.0, 8.0]
    assert [ShuffledSampler(20, 5, 0).epoch_of(step) for step in (0, 1, 4, 10)] == [0.0, 0.25, 1.0, 2.5]
    assert len(ShuffledSampler(20, 5, 0)) == 20


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    classes=st.integers(1, 12),
    images=st.integers(1, 6),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=60, deadline=None)
def test_every_batch_has_p_classes_with_k_images_each(sizes: list[int], classes: int, images: int, seed: int) -> None:
    labels, classes = of_sizes(*sizes), min(classes, len(sizes))
    made = PKSampler(labels, classes, images, seed)
    seen: Counter[int] = Counter()
    for step in range(25):
        rows = made.rows(step)
        assert rows.dtype == np.int64
        groups = rows.reshape(classes, images)
        of_group = labels[groups]
        assert (of_group == of_group[:, :1]).all(), "the images of a class stand side by side"
        assert len(set(of_group[:, 0])) == classes, "no class twice in a batch"
        seen.update(of_group[:, 0].tolist())
        for group in groups:
            count = Counter(group.tolist())
            size = sizes[labels[group[0]]]
            assert len(count) == min(size, images)
            assert max(count.values()) - min(count.values()) <= 1, "where images repeat, they do so evenly"
    often = [seen[c] for c in range(len(sizes))]
    assert max(often) - min(often) <= 1, "no class comes again before all have come"


def test_the_images_of_a_class_come_evenly() -> None:
    """Each once before any comes again, though three do not divide any class but two."""
    made = PKSampler(LABELS, 7, 3, 5)
    seen = np.zeros(len(LABELS), dtype=int)
    for step in range(50):
        np.add.at(seen, made.rows(step), 1)
        for label in range(7):
            of_class = seen[labels_are(label)]
            assert of_class.max() - of_class.min() <= 1
            assert of_class.sum() == 3 * (step + 1)


def labels_are(label: int) -> np.ndarray:
    return label == LABELS


def test_large_and_small_classes_come_equally_often() -> None:
    labels = of_sizes(100, 2, 2, 2, 2)
    made = PKSampler(labels, 2, 2, 0)
    seen = Counter(labels[np.concatenate([made.rows(step) for step in range(50)])].tolist())
    assert seen == dict.fromkeys(range(5), 40)


def test_classes_meet_in_ever_new_company() -> None:
    made = PKSampler(np.arange(20).repeat(2), 5, 2, 0)
    company = {frozenset(made.rows(step)[::2] // 2) for step in range(200)}
    assert len(company) > 190
    together = {pair for group in company for pair in ((a, b) for a in group for b in group if a < b)}
    assert len(together) == 190


def test_classes_without_images_do_not_matter() -> None:
    labels = of_sizes(3, 3, 3) * 5  # 0, 5, 10
    rows = PKSampler(labels, 3, 2, 0).rows(0)
    assert set(labels[rows]) == {0, 5, 10}


@given(count=st.integers(1, 14), size=st.integers(1, 14), seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_a_deck_is_dealt_evenly_and_without_repeats(count: int, size: int, seed: int) -> None:
    deck = Deck(count, size, seed)
    hands = [deck.hand(number) for number in range(3 * count + 2)]
    seen = np.zeros(count, dtype=int)
    for hand in hands:
        assert hand.shape == (size,)
        often = np.bincount(hand, minlength=count)
        assert often.max() - often.min() <= 1
        assert often.max() == 1 or count < size
        seen += often
        assert seen.max() - seen.min() <= 1
    for number in (len(hands) - 1, 0, len(hands) // 2):
        assert Deck(count, size, seed).hand(number).tolist() == hands[number].tolist()


def test_every_card_can_come_anywhere() -> None:
    """Moving repeats back must not keep a card from any place for long."""
    hands = np.array([Deck(5, 3, seed).hand(number) for seed in range(200) for number in range(5)])
    share = np.array([(hands == card).mean(0) for card in range(5)])
    assert np.abs(share - 0.2).max() < 0.05


def test_a_far_step_is_soon_found() -> None:
    """A thousand rounds hang together here, and none before them is looked at."""
    deck = Deck(1013, 1009, 1)
    assert len(set(deck.hand(1009 * 10**6 + 1000).tolist())) == 1009


GOLDEN = [[29, 44, 27, 8, 35, 17], [1, 26, 11, 28, 39, 3]]


def test_golden_batches() -> None:
    """What a seed means must not change: runs are made again from it."""
    made = PKSampler(LABELS, 3, 2, 11)
    assert [made.rows(step).tolist() for step in (0, 12)] == GOLDEN


@pytest.mark.parametrize(
    ("labels", "classes", "images", "says"),
    [
        ([0, 0, 1, 1], 3, 2, "data.sampler.classes=3, but only 2 classes have images"),
        ([], 2, 2, "only 0 classes"),
        ([0, 0, -1, 1, -1], 2, 2, "2 images have no label"),
        ([0, 1], 0, 2, "batches of 0 classes with 2 images cannot be made"),
        ([0, 1], 2, 0, "batches of 2 classes with 0 images cannot be made"),
    ],
)
def test_what_cannot_be_sampled_is_refused(labels: list[int], classes: int, images: int, says: str) -> None:
    with pytest.raises(InputError) as caught:
        PKSampler(np.array(labels, dtype=np.int64), classes, images, 0)
    assert says in caught.value.message
    assert caught.value.remedy


def test_seeds_are_well_mixed() -> None:
    seeds = Counter(seeded(a, b, c) for a in range(8) for b in range(8) for c in range(8))
    assert max(seeds.values()) == 1
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeded(1, 2) != seeded(2, 1)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.15
