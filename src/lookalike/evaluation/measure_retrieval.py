"""Any saved model by a protocol: the numbers that `lookalike evaluate --protocol` prints, and those of a receipt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.data.pack import Pack
from lookalike.errors import InputError
from lookalike.evaluation.duplicates import groups_of, near_duplicates
from lookalike.evaluation.evaluate import Progress, View, outputs_of
from lookalike.evaluation.neighbours import unit_vectors
from lookalike.evaluation.protocols import Crop, Divided, card
from lookalike.evaluation.retrieval import KS, per_query, summary
from lookalike.evaluation.words import counted
from lookalike.models.pretrained import Pretrained


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
    model: Pretrained,
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
        "device": model.device,
        "batch_size": batch_size,
        "flip": flip,
    }
    view: View = "outputs" if model.config.head else "features"
    own = "embedding" if model.config.head else "features"
    vectors = outputs_of(model.network, test.images, view=view, progress=progress, **how)
    if not np.isfinite(vectors).all():
        raise InputError(f"{model.config.name}: its vectors are not finite.", "Train it again, with a lower rate.")
    labels = test.labels
    results = summary(vectors, labels)
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
            summary(vectors, labels, groups=groups, with_nmi=False) if has_queries(labels, groups) else None
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
