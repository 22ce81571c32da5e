"""The labelled items of a gallery with their vectors, to fit a classifier to."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from lookalike.data.labelled import LabelledItems
from lookalike.errors import InputError
from lookalike.gallery.store.base import Store, batches, with_vectors

READ_BATCH = 4096  # vectors read at a time


def labelled_items(store: Store, location: str) -> LabelledItems:
    """Read all items that have a label.

    Args:
        store: of the gallery; it must stay open as long as thumbnails are read.
        location: of the gallery, for messages.

    Raises:
        InputError: there are none, or the store cannot be read.
    """
    items, vectors = [], []
    for batch in batches((item for item in store.rows() if item.label is not None), READ_BATCH):
        there, found = with_vectors(store, batch)
        items += there
        vectors.append(found)
    if not items:
        raise InputError(f"{location}: no item has a label.", "Label some: lookalike gallery update --label.")
    ids = [item.id for item in items]
    names, labels = np.unique([str(item.label) for item in items], return_inverse=True)
    _, groups = np.unique([item.digest.hex() for item in items], return_inverse=True)
    return LabelledItems(
        name=PurePath(location).name,
        location=location,
        paths=[item.path for item in items],
        labels=labels.astype(np.int64),
        class_names=tuple(names.tolist()),
        vectors=np.concatenate(vectors),
        groups=groups.astype(np.int64),
        fingerprint=store.about.fingerprint,
        model=store.about.model,
        thumbnail=lambda index: store.thumbnail(ids[index]),
    )
