"""Evaluate a trained model: classification on a split, or retrieval by a protocol.

`evaluate` does both for any model and data set. Training, `lookalike evaluate` and the studies all measure with the
functions below, so that their numbers can be compared.
"""

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
from lookalike.evaluation.protocols import PROTOCOLS, Crop, Divided, card, named
from lookalike.evaluation.retrieval import KS, per_query, retrieval_summary
from lookalike.models.inference import View, run_batches
from lookalike.models.pretrained import ImageModel, load
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


@dataclass(frozen=True, repr=False)
class ClassificationResult:
    """Classification of one split.

    Args:
        metrics: as in a receipt: `n`, `top1`, `top5`, `nll`, `ece` and others, and how they were measured.
        logits: (N, C) float32.
        labels: (N,) int64, the model's classes.
        images: (N, size, size, 3) uint8.
        paths: N, as the data set names its images.
        catalog: the whole data set.
    """

    metrics: dict[str, Any]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    paths: Sequence[str]
    catalog: Catalog

    @property
    def data(self) -> dict[str, str]:
        """The name of the data set and the remark on it, for receipts and reports."""
        return {"name": self.catalog.name, "remark": self.catalog.remark}

    def __repr__(self) -> str:
        found = self.metrics
        return (
            f"<ClassificationResult: {self.catalog.name} {found['split']}, {found['n']:,} images, "
            f"top-1 {found['top1']:.2%}, nll {found['nll']:.4f}>"
        )


@dataclass(frozen=True, repr=False)
class RetrievalResult:
    """Retrieval by a protocol: each test image is searched for among all others.

    Args:
        metrics: as in a receipt: `retrieval_summary` of the vectors, the recall of other `views`, and the `card`.
        embeddings: (N, D) float32 of length 1.
        labels: (N,) int64, the test classes.
        images: (N, size, size, 3) uint8.
        class_names: of the test classes.
        divided: the data set, divided by the protocol.
    """

    metrics: dict[str, Any]
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    class_names: Sequence[str]
    divided: Divided

    @property
    def data(self) -> dict[str, str]:
        """The name of the data set and the remark on it, for receipts and reports."""
        return {"name": self.divided.source.name, "remark": self.divided.remark}

    def __repr__(self) -> str:
        found = self.metrics
        return (
            f"<RetrievalResult: {found['card']['data']} by {found['card']['protocol']}, {found['queries']:,} queries, "
            f"Recall@1 {found['recall_at_1']:.2%}, MAP@R {found['map_at_r']:.2%}>"
        )


def evaluate(
    model: ImageModel | str | Path,
    data: Catalog | str | Path,
    *,
    split: Split | None = None,
    protocol: str | None = None,
    flip: bool = False,
    with_duplicates: bool = False,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    batch_size: int = 500,
    decoding: Progress | None = None,
    progress: Progress | None = None,
) -> ClassificationResult | RetrievalResult:
    """Evaluate a model on labelled images: classification, or retrieval by a protocol.

    Args:
        model: a loaded model, on the device to compute on, or the name of one for `lookalike.load`.
        data: a catalog, or a data set for `lookalike.load_dataset`.
        split: "train", "val" (the default) or "test". A protocol defines its own test images.
        protocol: such as "cars196-zero-shot". None: the model's own if it has an embedding head, else classification.
        flip: average with the mirrored image.
        with_duplicates: retrieval: also measure with the near-duplicates of each query excluded.
        val_fraction: share of each class that is measured if the data name no val split; None: as in training.
        split_seed: which images these are; None: as in training.
        batch_size: images that are computed at a time.
        decoding: called with (images decoded, images in all), unless they were decoded before.
        progress: called with (images evaluated, images in all).

    Raises:
        InputError: no such model, data or protocol, options that do not go together, an empty or unlabelled split, or
            a class that the model does not know.
    """
    loaded = model if isinstance(model, ImageModel) else load(model)
    config = loaded.config
    protocol = protocol or (config.protocol if config.head else None)
    if protocol:
        if (split, val_fraction, split_seed) != (None, None, None):
            raise InputError(
                f"the protocol {protocol} defines which images are measured.",
                "Leave out split, val_fraction and split_seed (--split, --val-fraction, --split-seed).",
            )
        catalog = data if isinstance(data, Catalog) else load_dataset(data)
        divided = named(protocol).divide(catalog)
        test = pack(
            divided.test,
            config.image_size,
            crop_boxes=config.crop_boxes,
            crop_mode=config.crop_mode,
            progress=decoding,
        )
        return evaluate_retrieval(
            loaded,
            divided,
            test,
            crop_boxes=config.crop_boxes,
            flip=flip,
            with_duplicates=with_duplicates,
            batch_size=batch_size,
            progress=progress,
        )
    if not config.has_logits:
        raise InputError(
            "this model has no classes, only vectors, so there is no accuracy to measure.",
            f"Measure retrieval by a protocol (--protocol): {', '.join(PROTOCOLS)}.",
        )
    if with_duplicates:
        raise InputError("near-duplicates are for retrieval, and this is classification.", "Give a protocol, too.")
    if not isinstance(data, Catalog):
        data = read_as_trained(data, config, val_fraction=val_fraction, split_seed=split_seed)
    return evaluate_classification(
        loaded, data, split or "val", flip=flip, batch_size=batch_size, decoding=decoding, progress=progress
    )


def read_as_trained(
    source: str | Path, config: ModelConfig, *, val_fraction: float | None = None, split_seed: int | None = None
) -> Catalog:
    """Read a data set. If it names no val split, the validation images are those that the model was not trained on.

    Args:
        source: as for `lookalike.load_dataset`.
        config: of the model.
        val_fraction: share of each class's training images for validation; None: the model's, or else the default.
        split_seed: which images; None: the model's, or else the default.

    Raises:
        InputError: as `load_dataset`.
    """
    split: dict[str, Any] = {
        "val_fraction": config.val_fraction if val_fraction is None else val_fraction,
        "split_seed": config.split_seed if split_seed is None else split_seed,
    }
    given = {key: value for key, value in split.items() if value is not None}
    catalog = load_dataset(source, **given)
    return with_drawn_validation(catalog, given.get("val_fraction", VAL_FRACTION), given.get("split_seed", 0))


def evaluate_classification(
    model: ImageModel,
    catalog: Catalog,
    split: Split = "val",
    *,
    flip: bool = False,
    batch_size: int = 500,
    decoding: Progress | None = None,
    progress: Progress | None = None,
) -> ClassificationResult:
    """Classify the images of a split: whole images at the model's size, float32.

    Classes are matched by their id in the data set (a WordNet id, a folder name), so their order may differ.

    Args:
        model: on the device to compute on.
        catalog: the data.
        split: "train", "val" or "test".
        flip: average with the mirrored image.
        batch_size: images that are computed at a time.
        decoding: called with (images decoded, images in all), unless they were decoded before.
        progress: called with (images evaluated, images in all).

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
        progress=decoding,
    )
    if (chosen.labels < 0).any():
        raise InputError(f"{catalog.root}: the {split} split has no labels.", "Choose another --split.")
    labels = model_labels(model, catalog)[chosen.labels]
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
    metrics = {
        **summary(logits, labels, class_names=model.config.class_names, temperature=model.config.temperature),
        "temperature_remark": model.config.temperature_remark,
        "split": split,
        "crop": "single",
        "flip": flip,
        "image_size": model.config.image_size,
    }
    return ClassificationResult(metrics, logits, labels, chosen.images, chosen.catalog.paths, catalog)


def model_labels(model: ImageModel, catalog: Catalog) -> NDArray[np.int64]:
    """The model's label for each label of the catalog, (classes of the catalog,) int64.

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


def evaluate_retrieval(
    model: ImageModel,
    divided: Divided,
    test: Pack,
    *,
    crop_boxes: bool = False,
    flip: bool = False,
    with_duplicates: bool = False,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> RetrievalResult:
    """Search for each image of the test classes among all others, float32.

    The vectors are the embeddings of the model or the pooled features of a classifier. `metrics["views"]` has the
    recall of other vectors: the pooled features of an embedding model or the softmax outputs of a classifier, and
    without `flip` also the vectors averaged with those of the mirrored image.

    Args:
        model: on the device to compute on.
        divided: the data set, divided by a protocol.
        test: the pack of its test images, at the model's size.
        crop_boxes: whether the pack was cropped to boxes.
        flip: average with the mirrored image.
        with_duplicates: also measure with the near-duplicates of each query excluded; the result is None if that
            leaves no query.
        batch_size: images that are computed at a time.
        progress: called with (images evaluated, images in all).

    Raises:
        InputError: vectors that are not finite, or no query that has a second image of its class.
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
        raise InputError(
            f"{model.config.name}: its vectors are not finite.",
            "Train it again with a lower learning rate (optimizer.lr).",
        )
    labels = test.labels
    metrics = retrieval_summary(vectors, labels)
    others: dict[View, str] = {"softmax": "softmax"} if model.config.has_logits else {}
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
        metrics["without_duplicates"] = (
            retrieval_summary(vectors, labels, groups=groups, with_nmi=False) if _has_queries(labels, groups) else None
        )
    metrics |= {
        "view": own,
        "views": views,
        "flip": flip,
        "image_size": test.size,
        "classes": len(test.catalog.class_names),
        "card": card(
            divided,
            crop=_crop_of(divided, crop_boxes),
            resolution=test.size,
            dim=vectors.shape[1],
            crop_mode=model.config.crop_mode,
            excluded_queries=metrics["excluded"],
            near_duplicates=duplicates,
            trained=f"{model.config.dataset or 'unnamed data'}, {counted(model.config.num_classes, 'class')}",
            seen=len(model.config.classes_in(divided.test.class_ids, divided.test.class_names)),
            undecodable=len(test.skipped),
        ),
    }
    return RetrievalResult(metrics, unit_vectors(vectors), labels, test.images, test.catalog.class_names, divided)


def _recalls(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    found = per_query(vectors, labels, KS, at_r=False)
    return {key: found.mean(key) for key in found.values}


def _has_queries(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> bool:
    """Whether any image has another image of its class outside its group of near-duplicates."""
    kinds = np.unique(np.stack([labels, groups]), axis=1)[0]
    return len(np.unique(kinds)) < len(kinds)


def _crop_of(divided: Divided, crop_boxes: bool) -> Crop:
    """The crop, as a card names it."""
    if "already cropped" in divided.source.remark:
        return "already cropped"
    return "boxes" if crop_boxes and any(box is not None for box in divided.test.boxes) else "whole"
