"""A gallery's own threshold: the cosine that few pairs of its rows of different labels reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lookalike.errors import InputError
from lookalike.evaluation.pair_similarity import MATCHING, TELLING, similarities, threshold
from lookalike.gallery.store.base import Store, batches

MOST = 20_000  # labelled rows that are looked at; of more, so many are drawn
BATCH = 4096  # vectors read at a time


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` found.

    Args:
        threshold: the cosine that 1 % of the pairs of different labels reach.
        found: share of the pairs of one label that reach it, 0..1.
        rows: labelled rows that were looked at.
        labels: how many labels they have.
    """

    threshold: float
    found: float
    rows: int
    labels: int


def calibrate(store: Store, place: str) -> Calibrated:
    """Find the least cosine that at most 1 % of the pairs of rows of different labels reach, and keep it in the store.

    Args:
        store: open for writing; rows without a label are left out.
        place: of the gallery, for messages.

    Raises:
        InputError: fewer than 1,000 pairs of different labels or no pair of one label, or a store open for reading.
    """
    labelled = [(row.id, row.label) for row in store.rows() if row.label is not None]
    if len(labelled) > MOST:
        chosen = np.random.default_rng(0).choice(len(labelled), MOST, replace=False)
        labelled = [labelled[place] for place in np.sort(chosen).tolist()]
    names, labels = np.unique([label for _, label in labelled], return_inverse=True)
    counts = np.bincount(labels, minlength=1)
    different = (len(labels) ** 2 - int((counts.astype(np.int64) ** 2).sum())) // 2
    least = round(TELLING / MATCHING)
    if different < least or counts.max() < 2:
        lacking = f"{different:,} pairs of different labels" if different < least else "no two rows of one label"
        raise InputError(
            f"{place}: too few labelled rows to calibrate on: {len(labels):,} of {len(names):,} labels, {lacking}.",
            f"It takes {least:,} pairs of different labels and two rows of one label: label more rows.",
        )
    vectors = np.concatenate([store.vectors(ids) for ids in batches((id for id, _ in labelled), BATCH)])
    found = threshold(similarities(vectors, labels.astype(np.int64)), MATCHING)
    assert found is not None  # the pairs are enough
    cosine = min(float(np.nextafter(np.float32(found.cosine), np.float32(2))), 1.0)
    about = replace(store.about, own_threshold=cosine, own_rows=len(labels), own_labels=len(names))
    store.calibrated(about)
    return Calibrated(cosine, found.found, len(labels), len(names))
