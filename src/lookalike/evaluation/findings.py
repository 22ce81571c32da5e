"""What is worth showing of a measured network: its classes, the pairs it confuses, the mistakes it is surest of."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.evaluation.calibration import log_softmax
from lookalike.evaluation.classification import confusion_matrix, most_confused_pairs, per_class_accuracy, predictions

LARGEST = 96  # pixels of a picture's side; larger ones are made smaller
QUALITY = 88  # of the JPEGs


@dataclass(frozen=True)
class Picture:
    """An image that was mistaken: a data URI, its side in pixels, the network's confidence in its guess, 0..1, and its
    path; empty where that is not known.
    """

    source: str
    side: int
    truth: str
    guess: str
    sure: float
    path: str = ""


@dataclass(frozen=True)
class Direction:
    """Images of one class taken for another: how many of how many, and pictures of some."""

    truth: str
    guess: str
    times: int
    images: int
    pictures: list[Picture]


@dataclass(frozen=True)
class ClassRow:
    """A class: share right (None without images), number of images, and what it is most often taken for."""

    name: str
    share: float | None
    images: int
    taken_for: str | None
    times: int


class Findings:
    """What a network said of each image.

    Args:
        logits: (N, C) float32.
        labels: (N,) int64.
        images: (N, S, S, 3) uint8.
        class_names: C of them.
        paths: of the images, N; None: not known.

    Raises:
        InputError: logits and labels that cannot be measured.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        images: NDArray[np.uint8],
        class_names: Sequence[str],
        paths: Sequence[str] | None = None,
    ) -> None:
        self.logits, self.labels, self.images, self.names = logits, labels, images, list(class_names)
        self.paths = paths
        self.matrix = confusion_matrix(logits, labels)  # (C, C)
        self.guesses = predictions(logits)  # (N,)
        self.wrong = self.guesses != labels  # (N,)
        self.confidence = np.exp(log_softmax(logits)).max(1)  # (N,)

    def classes(self) -> list[ClassRow]:
        """All classes, best first; those without images last."""
        shares = per_class_accuracy(self.logits, self.labels)
        mistaken = self.matrix - np.diag(self.matrix.diagonal())
        rows = []
        for label, (name, share) in enumerate(zip(self.names, shares.tolist(), strict=True)):
            other, times = int(mistaken[label].argmax()), int(mistaken[label].max())
            taken_for = self.names[other] if times else None
            known = None if math.isnan(share) else share
            rows.append(ClassRow(name, known, int(self.matrix[label].sum()), taken_for, times))
        return sorted(rows, key=lambda row: 1.0 if row.share is None else -row.share)

    def surest_mistakes(self, most: int) -> list[Picture]:
        """The mistakes that the network was surest of, surest first."""
        return self._pictures(self.wrong, most)

    def confused(self, pairs: int, pictures: int) -> list[tuple[Direction, ...]]:
        """The pairs of classes taken for each other most often; the directions that occur, more frequent first.

        Args:
            pairs: at most so many.
            pictures: at most so many of each direction, the surest mistakes first.
        """
        found = []
        for one, other, _ in most_confused_pairs(self.logits, self.labels, pairs):
            ways = (self._direction(one, other, pictures), self._direction(other, one, pictures))
            found.append(tuple(sorted((way for way in ways if way.times), key=lambda way: -way.times)))
        return found

    def _direction(self, truth: int, guess: int, pictures: int) -> Direction:
        chosen = (self.labels == truth) & (self.guesses == guess)
        times, images = int(self.matrix[truth, guess]), int(self.matrix[truth].sum())
        return Direction(self.names[truth], self.names[guess], times, images, self._pictures(chosen, pictures))

    def _pictures(self, chosen: NDArray[np.bool_], most: int) -> list[Picture]:
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(-self.confidence[rows], kind="stable")][:most]
        return [self._picture(int(row)) for row in rows]

    def _picture(self, row: int) -> Picture:
        truth, guess = self.names[self.labels[row]], self.names[self.guesses[row]]
        path = self.paths[row] if self.paths is not None else ""
        side, sure = self.images.shape[1], float(self.confidence[row])
        return Picture(data_uri(self.images[row]), side, truth, guess, sure, path)


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture, (S, S, 3) uint8, as a JPEG in a data URI, made smaller where its side is more than `LARGEST`."""
    picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
