"""Outputs of a network over packed images: the one way in which every number of ours is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lookalike.data.catalog import Catalog, Split
from lookalike.data.image_folder import VAL_FRACTION, with_drawn_validation
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError, counted
from lookalike.evaluation.classification import summary
from lookalike.evaluation.duplicates import groups_of, near_duplicates
from lookalike.evaluation.knn import unit_vectors
from lookalike.evaluation.protocols import Crop, Divided, card
from lookalike.evaluation.retrieval import KS, per_query, retrieval_summary
from lookalike.models.inference import View, run_batches
from lookalike.models.pretrained import ImageModel
from lookalike.models.serialization import ModelConfig

Progress = Callable[[int, int], None]


def outputs_of(
    network: nn.Module,
    images: NDArray[np.uint8],
    *,
    view: View,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    batch_size: int = 500,
    flip: bool = False,
    precision: str = "float32",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The outputs of a network for whole images, one crop, in evaluation mode; its mode is restored afterwards.

    Args:
        network: on the device to compute on.
        images: (N, H, W, 3) uint8.
        view: which outputs; see `lookalike.models.inference.forward`.
        mean: of the RGB channels, 0 to 1.
        std: of the RGB channels, 0 to 1.
        batch_size: images at a time.
        flip: average with the outputs for the mirrored images (flip test-time augmentation).
        precision: "float32", or "bf16" for autocast.
        progress: called with (images done, images in all).

    Returns:
        (N, C) or (N, D) float32.
    """
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    parts, done = [], 0
    for part in run_batches(network, batches, view, mean=mean, std=std, flip=flip, precision=precision):
        parts.append(part)
        done += len(part)
        if progress:
            progress(done, len(images))
    return np.concatenate(parts)


# Any saved model on any data: the numbers that `lookalike evaluate` prints.


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
        source: as for `lookalike.data.registry.load_dataset`.
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
    catalog = load_dataset(source, **given)
    return with_drawn_validation(catalog, given.get("val_fraction", VAL_FRACTION), given.get("split_seed", 0))


def measure(
    model: ImageModel,
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
    logits = outputs_of(
        model.network,
        chosen.images,
        view="outputs",
        mean=model.config.mean,
        std=model.config.std,
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


def in_classes_of(model: ImageModel, catalog: Catalog) -> NDArray[np.int64]:
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


# Any saved model by a protocol: the numbers that `lookalike evaluate --protocol` prints, and those of a receipt.


@dataclass(frozen=True)
class MeasuredRetrieval:
    """A model measured by a protocol.

    Args:
        results: as in a receipt: `retrieval.summary` of the model's vectors, what its other views give, and the card.
        embeddings: (N, D) float32 of length 1.
        labels: (N,) int64, in the test classes.
        images: (N, size, size, 3) uint8.
    """

    results: dict[str, Any]
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]


def measure_retrieval(
    model: ImageModel,
    divided: Divided,
    test: Pack,
    *,
    crop_boxes: bool = False,
    flip: bool = False,
    with_duplicates: bool = False,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> MeasuredRetrieval:
    """Every image of the test classes searched among all others, float32.

    The vectors are the model's embeddings or, of a classifier, its pooled features. Beside them stand, as `views`, the
    pooled features of a model of embeddings, and the softmax outputs of a classifier; and, of vectors that are not
    averaged with those of the mirrored image, what this would give.

    Args:
        model: on the device to compute on.
        divided: the data, by a protocol.
        test: the pack of its test images, at the model's size.
        crop_boxes: whether that was cut to boxes.
        flip: average with the mirrored image.
        with_duplicates: measure also with the near-duplicates of each query left out of what it finds; None where no
            query is left then.
        batch_size: images at a time.
        progress: called with (images measured, images in all).

    Raises:
        InputError: vectors that are not finite, or a pack without any query that could find something.
    """
    how: dict[str, Any] = {
        "mean": model.config.mean,
        "std": model.config.std,
        "batch_size": batch_size,
        "flip": flip,
    }
    view: View = "outputs" if model.config.head else "features"
    own = "embedding" if model.config.head else "features"
    vectors = outputs_of(model.network, test.images, view=view, progress=progress, **how)
    if not np.isfinite(vectors).all():
        raise InputError(f"{model.config.name}: its vectors are not finite.", "Train it again, with a lower rate.")
    labels = test.labels
    results = retrieval_summary(vectors, labels)
    others: dict[View, str] = {} if model.config.head else {"softmax": "softmax"}
    if model.config.head and not model.config.head.projection:
        others = {"features": "features"}
    views = {}
    for other, name in others.items():
        views[name] = _recalls(outputs_of(model.network, test.images, view=other, **how), labels)
    if not flip:
        averaged = outputs_of(model.network, test.images, view=view, **{**how, "flip": True})
        views[f"{own}, flip averaged"] = _recalls(averaged, labels)
    duplicates = None
    if with_duplicates:
        pairs = near_duplicates(test.images).pairs
        duplicates = len(pairs)
        groups = groups_of(pairs, len(labels))
        results["without_duplicates"] = (
            retrieval_summary(vectors, labels, groups=groups, with_nmi=False) if has_queries(labels, groups) else None
        )
    results |= {
        "view": own,
        "views": views,
        "flip": flip,
        "image_size": test.size,
        "classes": len(test.catalog.class_names),
        "card": card(
            divided,
            crop=crop_of(divided, crop_boxes),
            resolution=test.size,
            dim=vectors.shape[1],
            crop_mode=model.config.crop_mode,
            excluded_queries=results["excluded"],
            near_duplicates=duplicates,
            trained=f"{model.config.dataset or 'unnamed data'}, {counted(model.config.num_classes, 'class')}",
            seen=len(model.config.classes_in(divided.test.class_ids, divided.test.class_names)),
            undecodable=len(test.skipped),
        ),
    }
    return MeasuredRetrieval(results, unit_vectors(vectors), labels, test.images)


def _recalls(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    found = per_query(vectors, labels, KS, at_r=False)
    return {key: found.mean(key) for key in found.values}


def has_queries(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> bool:
    """Whether any image has another of its class outside its group of near-duplicates."""
    kinds = np.unique(np.stack([labels, groups]), axis=1)[0]
    return len(np.unique(kinds)) < len(kinds)


def crop_of(divided: Divided, crop_boxes: bool) -> Crop:
    """What a card says of the crop."""
    if "already cropped" in divided.source.remark:
        return "already cropped"
    return "boxes" if crop_boxes and any(box is not None for box in divided.test.boxes) else "whole"
