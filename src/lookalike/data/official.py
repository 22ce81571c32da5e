"""What the public sets for retrieval hold officially, and where a copy differs from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lookalike.data import cars196, cub200, stanford_products
from lookalike.data.catalog import SPLITS, UNLABELLED, Catalog, Split


@dataclass(frozen=True)
class Official:
    """A whole set.

    Args:
        title: what it is called in messages.
        classes: how many it has.
        counts: images of each split.
        first: classes, in label order, that zero-shot retrieval trains on; it is tested on the others.
        zero_shot: images of the first classes, and of the others.
    """

    title: str
    classes: int
    counts: dict[Split, int]
    first: int
    zero_shot: tuple[int, int]


SETS: dict[str, Official] = {
    cars196.NAME: Official("Cars196", cars196.CLASSES, cars196.COUNTS, cars196.FIRST, cars196.ZERO_SHOT),
    cub200.NAME: Official("CUB-200-2011", cub200.CLASSES, cub200.COUNTS, cub200.FIRST, cub200.ZERO_SHOT),
    stanford_products.NAME: Official(
        "Stanford Online Products",
        stanford_products.CLASSES,
        stanford_products.COUNTS,
        stanford_products.CLASSES_OF["train"],
        (stanford_products.COUNTS["train"], stanford_products.COUNTS["test"]),
    ),
}


def zero_shot_counts(catalog: Catalog) -> tuple[int, int] | None:
    """Images of the classes that zero-shot retrieval trains on, and of those it is tested on; None for other sets."""
    if (official := SETS.get(catalog.name)) is None:
        return None
    known = catalog.labels[catalog.labels != UNLABELLED]
    return int((known < official.first).sum()), int((known >= official.first).sum())


def differences(catalog: Catalog) -> list[str]:
    """Where a copy of one of these sets is not the official one, in words; none for other sets."""
    if (official := SETS.get(catalog.name)) is None:
        return []
    found = []
    with_images = len(np.unique(catalog.labels[catalog.labels != UNLABELLED]))
    if with_images != official.classes:
        found.append(f"{with_images:,} classes with images, not {official.classes:,}")
    for split in SPLITS:
        here, whole = len(catalog.rows_of(split)), official.counts.get(split, 0)
        if here != whole:
            found.append(f"{split}: {here:,} images, not {whole:,}")
    if len(catalog) != (total := sum(official.counts.values())):
        found.append(f"{len(catalog):,} images in all, not {total:,}")
    last = official.classes - official.first
    for here, whole, which in zip(
        zero_shot_counts(catalog) or (),
        official.zero_shot,
        (f"first {official.first:,} classes", f"last {last:,} classes"),
        strict=True,
    ):
        if here != whole:
            found.append(f"zero-shot, {which}: {here:,} images, not {whole:,}")
    return found
