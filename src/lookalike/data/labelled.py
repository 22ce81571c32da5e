"""Labelled images of a gallery, with the vectors that are stored for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledItems:
    """Labelled images whose vectors are known; `Gallery.labelled` returns them.

    Args:
        name: of the gallery, for reports.
        location: of the gallery, for messages.
        paths: N, of the images; the files need not exist.
        labels: (N,) int64, indices into `class_names`.
        class_names: C.
        vectors: (N, D) float32 of length 1.
        groups: (N,) int64, equal for images whose files have the same bytes.
        fingerprint: of the model that made the vectors.
        model: where that model is: a folder, a Hub id or "default"; or "".
        thumbnail: returns a small JPEG of an image by its index, or None.
    """

    name: str
    location: str
    paths: Sequence[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    vectors: NDArray[np.float32]
    groups: NDArray[np.int64]
    fingerprint: str
    model: str
    thumbnail: Callable[[int], bytes | None]

    def __len__(self) -> int:
        return len(self.paths)
