"""Any saved model on any data: the numbers that `lookalike evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.data.catalog import Catalog, Split
from lookalike.data.folder import VAL_FRACTION, with_drawn_validation
from lookalike.data.pack import pack
from lookalike.data.read import read
from lookalike.errors import InputError
from lookalike.evaluation.classification import summary
from lookalike.evaluation.evaluate import Progress, logits_of
from lookalike.models.config import ModelConfig
from lookalike.models.pretrained import Pretrained


@dataclass(frozen=True)
class Measured:
    """A model measured on one split.

    Args:
        results: as in a receipt: top1, top5, nll, calibration, and how it was measured.
        logits: (N, C) float32.
        labels: (N,) int64, in the model's classes.
        images: (N, size, size, 3) uint8.
        paths: N, as the data set names its images.
    """

    results: dict[str, Any]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    paths: Sequence[str]


def read_as_trained(
    source: str | Path, config: ModelConfig, *, val_fraction: float | None = None, split_seed: int | None = None
) -> Catalog:
    """Read a data set; where it names no val split, the validation images are those that the model did not train on.

    Args:
        source: as for `lookalike.data.read.read`.
        config: the model's.
        val_fraction: share of each class's training images for validation; None: the model's, else `read`'s own.
        split_seed: which ones; None: likewise.

    Raises:
        InputError: as `read` does.
    """
    split: dict[str, Any] = {
        "val_fraction": config.val_fraction if val_fraction is None else val_fraction,
        "split_seed": config.split_seed if split_seed is None else split_seed,
    }
    given = {key: value for key, value in split.items() if value is not None}
    catalog = read(source, **given)
    return with_drawn_validation(catalog, given.get("val_fraction", VAL_FRACTION), given.get("split_seed", 0))


def measure(
    model: Pretrained,
    catalog: Catalog,
    split: Split = "val",
    *,
    flip: bool = False,
    batch_size: int = 500,
    packing: Progress | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure a model on a split: whole images at its own size, float32.

    Classes are matched by their id in the data set (a WordNet id, a folder name), so their order may differ.

    Args:
        model: on the device to compute on.
        catalog: the data.
        split: "train", "val" or "test".
        flip: average with the mirrored image.
        batch_size: images at a time.
        packing: called with (images decoded, images in all); not at all when the pack is there.
        progress: called with (images measured, images in all).

    Raises:
        InputError: an empty or unlabelled split, or a class that the model does not know.
    """
    rows = catalog.rows_of(split)
    if not len(rows):
        raise InputError(f"{catalog.root}: the {split} split has no images.", "Choose another --split.")
    config = model.config
    chosen = pack(
        catalog.select(rows),
        config.image_size,
        crop_boxes=config.crop_boxes,
        crop_mode=config.crop_mode,
        progress=packing,
    )
    if (chosen.labels < 0).any():
        raise InputError(f"{catalog.root}: the {split} split has no labels.", "Choose another --split.")
    labels = in_classes_of(model, catalog)[chosen.labels]
    logits = logits_of(
        model.network,
        chosen.images,
        mean=model.config.mean,
        std=model.config.std,
        device=model.device,
        batch_size=batch_size,
        flip=flip,
        progress=progress,
    )
    results = {
        **summary(logits, labels, class_names=model.config.class_names, temperature=model.config.temperature),
        "temperature_remark": model.config.temperature_remark,
        "split": split,
        "crop": "single",
        "flip": flip,
        "image_size": model.config.image_size,
    }
    return Measured(results, logits, labels, chosen.images, chosen.catalog.paths)


def in_classes_of(model: Pretrained, catalog: Catalog) -> NDArray[np.int64]:
    """The model's label for each label of the catalog, (catalog classes,) int64.

    Raises:
        InputError: a class of the catalog that the model was not trained on.
    """
    known = {mark: label for label, mark in enumerate(model.config.class_ids)}
    for mark in catalog.class_ids:
        if mark not in known:
            raise InputError(
                f"{catalog.root}: the model does not know the class '{mark}'.",
                f"It was trained on {model.config.dataset or 'other data'}, "
                f"{len(known)} classes: {', '.join(list(known)[:3])}{', ...' if len(known) > 3 else ''}.",
            )
    return np.array([known[mark] for mark in catalog.class_ids], np.int64)
