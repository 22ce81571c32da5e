"""Which images make up a batch: a function of the seed and the step, so that nothing has to be remembered.

A sampler is an endless stream of rows, cut into batches; any step's batch can be asked for at any time, and is always
the same.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError

ORDER, CLASSES, IMAGES = 1, 5, 6  # purposes of random streams; the loader and training have others


def seeded(*numbers: int) -> int:
    """A 63-bit seed that is a well-mixed function of the numbers (NumPy's `SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchSampler(Protocol):
    """What a loader asks for: `len()` is the number of images in an epoch."""

    @property
    def batch_size(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch_of(self, step: int) -> float:
        """Epochs done before this step, with their fraction."""
        ...

    def rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers of batch `step`, (batch_size,) int64."""
        ...


class ShuffledSampler:
    """One shuffled epoch after another, without end; no image is dropped where one ends within a batch.

    Args:
        count: images in an epoch.
        batch_size: images in a batch.
        seed: of the order.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Images in an epoch."""
        return self.count

    def epoch_of(self, step: int) -> float:
        """Epochs done before this step, with their fraction."""
        return step * self.batch_size / self.count

    def rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers of batch `step`, (batch_size,) int64."""
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
    """Batches of P classes with K images each, as losses on pairs need them; the K of a class stand side by side.

    Classes are dealt like cards: each once before any comes again, in a new order every time, and none twice in a
    batch. So are the images of a class. Large and small classes come equally often, so that an epoch (as many images
    as there are) does not show every image once. A class with fewer than K images repeats them.

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
        """Images in an epoch."""
        return sum(map(len, self._rows_of))

    def epoch_of(self, step: int) -> float:
        """Epochs done before this step, with their fraction."""
        return step * self.batch_size / len(self)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers of batch `step`, (P * K,) int64, class by class."""
        dealt = self._of_classes.hand(step)
        # every round deals each class once: the round is how often it has been there
        rounds = (step * self.classes + np.arange(self.classes)) // len(self._rows_of)
        parts = [self._rows_of[c][self._of_images[c].hand(int(r))] for c, r in zip(dealt, rounds, strict=True)]
        return np.concatenate(parts)


class Deck:
    """Cards 0..count-1, dealt in hands of `size`: every round deals each card once, in an order of its own.

    Where a hand takes the last cards of one round and the first of the next, those of the next that would come twice
    are moved back. Where there are fewer cards than a hand needs, it has all of them as often as they go into it, and
    the rest is dealt.

    Args:
        count: cards.
        size: of a hand.
        key: seeds of the orders.
    """

    def __init__(self, count: int, size: int, *key: int) -> None:
        self.count, self.key = count, key
        self.copies, self.size = divmod(size, count) if count < size else (0, size)
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def hand(self, number: int) -> NDArray[np.int64]:
        """Hand number 0, 1, ...: (size,) int64."""
        position, stop = number * self.size, (number + 1) * self.size
        parts = [np.arange(self.count)] * self.copies
        while position < stop:
            which, start = divmod(position, self.count)
            parts.append(self._round(which)[start : start + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _round(self, which: int) -> NDArray[np.int64]:
        """The order of a round. It depends on the rounds before, back to the last one that began with a new hand."""
        first = which - which % (self.size // math.gcd(self.size, self.count))
        if self._last is None or not first <= self._last[0] <= which:
            self._last = first, self._shuffled(first)
        while self._last[0] < which:
            number = self._last[0] + 1
            held = number * self.count % self.size  # cards that an unfinished hand has from the round before
            self._last = number, self._shuffled(number, self._last[1][self.count - held :])
        return self._last[1]

    def _shuffled(self, which: int, taken: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        order = np.random.default_rng(seeded(*self.key, which)).permutation(self.count)
        if taken is None:
            return order
        free = np.flatnonzero(~np.isin(order, taken))[: self.size - len(taken)]
        return np.concatenate([order[free], np.delete(order, free)])
