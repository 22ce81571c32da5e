"""Samplers: the rows of a batch are a function of seed and step, so that resuming needs no saved state."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError

ORDER, CLASSES, IMAGES = 1, 5, 6  # numbers of random streams; the loader and training have others


def seeded(*numbers: int) -> int:
    """Mix numbers into a 63-bit seed (NumPy's `SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchSampler(Protocol):
    """What a loader needs. `len()` is the number of images in an epoch."""

    @property
    def batch_size(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch_of(self, step: int) -> float:
        """Return the number of epochs before this step, with fraction."""
        ...

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of batch `step`, (batch_size,) int64."""
        ...


class ShuffledSampler:
    """Each image once per epoch, in a new order. A batch may span two epochs, so that no image is dropped.

    Args:
        count: images in an epoch.
        batch_size: images in a batch.
        seed: of the order.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        return self.count

    def epoch_of(self, step: int) -> float:
        """Return the number of epochs before this step, with fraction."""
        return step * self.batch_size / self.count

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of batch `step`, (batch_size,) int64."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while position < stop:
            epoch, start = divmod(position, self.count)
            parts.append(self._shuffled(epoch)[start : start + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng(seeded(self.seed, ORDER, epoch))
            self._order = epoch, generator.permutation(self.count)
        return self._order[1]


class PKSampler:
    """Batches of P classes with K images each, side by side, for losses on pairs (Hermans et al., 2017).

    Classes are drawn like cards: each once before any comes again, in a new order each time, and never twice in a
    batch. The same holds for the images of a class. Large and small classes come equally often, so an epoch (as many
    images as the data set has) does not contain every image. A class with fewer than K images repeats them.

    Args:
        labels: (N,) integers from 0; not every class needs to have images.
        classes: P.
        images: K.
        seed: of the order.

    Raises:
        InputError: fewer than P classes have images, P or K is below 1, or a label is negative.
    """

    def __init__(self, labels: NDArray[np.integer], classes: int, images: int, seed: int) -> None:
        labels = np.asarray(labels)
        if classes < 1 or images < 1:
            raise InputError(
                f"data.sampler: batches of {classes} classes with {images} images cannot be made.",
                "Use classes and images of at least 1.",
            )
        if (labels < 0).any():
            raise InputError(
                f"data.sampler: {int((labels < 0).sum())} images have no label.", "Leave unlabelled images out."
            )
        present, counts = np.unique(labels, return_counts=True)
        if len(present) < classes:
            raise InputError(
                f"data.sampler.classes={classes}, but only {len(present)} classes have images.",
                f"Use at most {len(present)}, with more images of each, and training.batch_size as their product.",
            )
        self.classes, self.images = classes, images
        self.batch_size = classes * images
        self._rows_of = np.split(np.argsort(labels, kind="stable").astype(np.int64), np.cumsum(counts)[:-1])
        self._of_classes = Deck(len(present), classes, seed, CLASSES)
        self._of_images = [
            Deck(len(rows), images, seed, IMAGES, int(label))
            for label, rows in zip(present, self._rows_of, strict=True)
        ]

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        return sum(map(len, self._rows_of))

    def epoch_of(self, step: int) -> float:
        """Return the number of epochs before this step, with fraction."""
        return step * self.batch_size / len(self)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of batch `step`, (P * K,) int64, class by class."""
        dealt = self._of_classes.hand(step)
        # each round has every class once, so the round is the number of times that a class has been drawn
        rounds = (step * self.classes + np.arange(self.classes)) // len(self._rows_of)
        parts = [self._rows_of[c][self._of_images[c].hand(int(r))] for c, r in zip(dealt, rounds, strict=True)]
        return np.concatenate(parts)


class Deck:
    """Cards 0..count-1, dealt in hands of `size`. Each round deals every card once, in a new order.

    If a hand spans two rounds, cards of the second round that would come twice in the hand are moved back. If a hand is
    larger than the deck, it holds the whole deck as often as that fits, and the rest is dealt.

    Args:
        count: number of cards.
        size: number of cards in a hand.
        key: seeds of the orders.
    """

    def __init__(self, count: int, size: int, *key: int) -> None:
        self.count, self.key = count, key
        self.copies, self.size = divmod(size, count) if count < size else (0, size)
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def hand(self, number: int) -> NDArray[np.int64]:
        """Return a hand by its number from 0, (size,) int64."""
        position, stop = number * self.size, (number + 1) * self.size
        parts = [np.arange(self.count)] * self.copies
        while position < stop:
            which, start = divmod(position, self.count)
            parts.append(self._round(which)[start : start + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _round(self, which: int) -> NDArray[np.int64]:
        """Return the order of a round. It depends on the rounds since the last one that began with a new hand."""
        first = which - which % (self.size // math.gcd(self.size, self.count))
        if self._last is None or not first <= self._last[0] <= which:
            self._last = first, self._shuffled(first)
        while self._last[0] < which:
            number = self._last[0] + 1
            held = number * self.count % self.size  # cards of the previous round in the unfinished hand
            self._last = number, self._shuffled(number, self._last[1][self.count - held :])
        return self._last[1]

    def _shuffled(self, which: int, taken: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        order = np.random.default_rng(seeded(*self.key, which)).permutation(self.count)
        if taken is None:
            return order
        free = np.flatnonzero(~np.isin(order, taken))[: self.size - len(taken)]
        return np.concatenate([order[free], np.delete(order, free)])
