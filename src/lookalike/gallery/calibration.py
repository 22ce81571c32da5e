"""A gallery's own threshold: the cosine that few pairs of its items with different labels reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lookalike.errors import InputError
from lookalike.evaluation.pair_similarity import FALSE_MATCH_RATE, MIN_FALSE_MATCHES, similarities, threshold
from lookalike.gallery.store.base import Store, batches

MAX_ITEMS = 20_000  # labelled items compared with one another; if there are more, a random sample
READ_BATCH = 4096  # vectors read at a time


@dataclass(frozen=True)
class Calibrated:
    """The result of `calibrate`.

    Args:
        threshold: cosine that 1 % of the pairs with different labels reach.
        recall: share of the pairs with the same label that reach it, 0 to 1.
        items: number of labelled items that were compared.
        labels: number of their labels.
    """

    threshold: float
    recall: float
    items: int
    labels: int


def calibrate(store: Store, location: str) -> Calibrated:
    """Find the lowest cosine that at most 1 % of the pairs of items with different labels reach, and store it.

    Args:
        store: open for writing. Items without a label are not used.
        location: of the gallery, for messages.

    Raises:
        InputError: fewer than 1,000 pairs with different labels or no pair with the same label, or the store is open
            for reading only.
    """
    labelled = [(item.id, item.label) for item in store.rows() if item.label is not None]
    if len(labelled) > MAX_ITEMS:
        chosen = np.random.default_rng(0).choice(len(labelled), MAX_ITEMS, replace=False)
        labelled = [labelled[index] for index in np.sort(chosen).tolist()]
    names, labels = np.unique([label for _, label in labelled], return_inverse=True)
    counts = np.bincount(labels, minlength=1)
    different = (len(labels) ** 2 - int((counts.astype(np.int64) ** 2).sum())) // 2
    needed = round(MIN_FALSE_MATCHES / FALSE_MATCH_RATE)
    if different < needed or counts.max() < 2:
        lacking = f"{different:,} pairs with different labels" if different < needed else "no two items with one label"
        raise InputError(
            f"{location}: too few labelled items to calibrate: {len(labels):,} with {len(names):,} labels, {lacking}.",
            f"Label more items: {needed:,} pairs with different labels and two items with the same label are needed.",
        )
    vectors = np.concatenate([store.vectors(ids) for ids in batches((id for id, _ in labelled), READ_BATCH)])
    found = threshold(similarities(vectors, labels.astype(np.int64)), FALSE_MATCH_RATE)
    assert found is not None  # there are enough pairs
    cosine = min(float(np.nextafter(np.float32(found.cosine), np.float32(2))), 1.0)
    about = replace(store.about, own_threshold=cosine, own_rows=len(labels), own_labels=len(names))
    store.calibrated(about)
    return Calibrated(cosine, found.found, len(labels), len(names))
