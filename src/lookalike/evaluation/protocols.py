"""Retrieval protocols: training classes, test classes, and the facts that describe a result.

All protocols are zero-shot: no test class is used for training. Every test image is a query against all other test
images. Queries whose class has no second image are excluded and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.errors import InputError, nearest
from lookalike.image import CropMode

Labels = NDArray[np.int64]
Crop = Literal["boxes", "whole", "already cropped"]
RULE = "every test image against all other test images, itself left out; queries without a positive left out"


@dataclass(frozen=True)
class Protocol:
    """A named procedure for measuring retrieval.

    Args:
        name: for example "cars196-zero-shot".
        about: one-sentence description of the training and test classes.
        choose: returns the labels of the training and of the test classes of a catalog, each in ascending order.
        classes: number of training and test classes of the full data set; None for a protocol for any data set.
        images: number of training and test images of the full data set; None for a protocol for any data set.
        rule: description of queries, gallery and exclusions.
    """

    name: str
    about: str
    choose: Callable[[Catalog], tuple[Labels, Labels]]
    classes: tuple[int, int] | None = None
    images: tuple[int, int] | None = None
    rule: str = RULE

    def divide(self, catalog: Catalog) -> Divided:
        """Divide a catalog into training and test classes, each relabelled from 0.

        Classes without images are removed. Images without a label are removed and counted. The splits of the catalog
        matter only to protocols that choose classes by split.

        Raises:
            InputError: the catalog does not match the protocol, a class is on both sides, there are fewer than two
                training classes, or no test class has two images.
        """
        chosen = self.choose(catalog)
        if both := sorted(set(chosen[0].tolist()) & set(chosen[1].tolist())):
            raise InputError(
                f"{catalog.root}: class '{catalog.class_ids[both[0]]}' would be trained and tested by {self.name}.",
                "Its classes must be disjoint: correct the splits of the data.",
            )
        present = np.unique(catalog.labels[catalog.labels != UNLABELLED])
        training, test = (catalog.of_classes(side[np.isin(side, present)]) for side in chosen)
        if len(training.class_ids) < 2:
            raise InputError(
                f"{catalog.root}: {self.name} finds {len(training.class_ids)} classes to train on.",
                "It needs two with images.",
            )
        if not len(test) or np.bincount(test.labels).max() < 2:
            raise InputError(
                f"{catalog.root}: {self.name} finds no class of two images to test.", "No query could find anything."
            )
        return Divided(self, catalog, training, test)


@dataclass(frozen=True)
class Divided:
    """A catalog divided by a protocol.

    Args:
        protocol: the protocol that divided it.
        source: the undivided catalog.
        training: images of the training classes, relabelled from 0.
        test: images of the test classes, relabelled from 0.
    """

    protocol: Protocol
    source: Catalog
    training: Catalog
    test: Catalog

    @property
    def complete(self) -> bool | None:
        """Whether the catalog has all classes and images of the full data set; None if the protocol has no full set."""
        if self.protocol.classes is None:
            return None
        return self.protocol.classes == self._classes and self.protocol.images == self._images

    @property
    def remark(self) -> str:
        """The remark for every result: the catalog's remark and what is missing from the full data set."""
        said = [self.source.remark] if self.source.remark else []
        if self.protocol.classes is not None and self.protocol.images is not None and not self.complete:
            sides = zip(("train", "test"), self._images, self.protocol.images, strict=True)
            images = ", ".join(f"{side} {here:,} of {full:,} images" for side, here, full in sides)
            sides = zip(("train", "test"), self._classes, self.protocol.classes, strict=True)
            classes = ", ".join(f"{side} {here:,} of {full:,} classes" for side, here, full in sides)
            said.append(f"not the full set: {images}; {classes}")
        return "; ".join(said)

    @property
    def _classes(self) -> tuple[int, int]:
        return len(self.training.class_ids), len(self.test.class_ids)

    @property
    def _images(self) -> tuple[int, int]:
        return len(self.training), len(self.test)

    def counts(self) -> dict[str, dict[str, int]]:
        """Count classes, images and single-image classes on both sides, and the unlabelled images."""
        sides = {"train": self.training, "test": self.test}
        found = {
            side: {
                "classes": len(catalog.class_ids),
                "images": len(catalog),
                "classes_of_one_image": int((np.bincount(catalog.labels) == 1).sum()),
            }
            for side, catalog in sides.items()
        }
        return {**found, "left_out": {"unlabelled": int((self.source.labels == UNLABELLED).sum())}}


def named(name: str) -> Protocol:
    """Return the protocol with the given name.

    Raises:
        InputError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"'{name}' is no protocol.{nearest(name, PROTOCOLS)}", f"The protocols are: {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def card(
    divided: Divided,
    *,
    crop: Crop,
    resolution: int,
    dim: int,
    crop_mode: CropMode = "center",
    excluded_queries: int | None = None,
    near_duplicates: int | None = None,
    trained: str = "",
    seen: int = 0,
    undecodable: int = 0,
) -> dict[str, Any]:
    """Return the facts needed to compare a result with others, as a JSON-serializable dict.

    Args:
        divided: the divided catalog.
        crop: "boxes" if images are cropped to their boxes, "already cropped" if the files are cropped, or "whole".
        resolution: side of the images in pixels.
        dim: dimension of the embeddings.
        crop_mode: how images are made square.
        excluded_queries: number of queries without a relevant image (`excluded` of `retrieval_summary`); by default the
            number of test classes with one image.
        near_duplicates: number of near-duplicate pairs among the test images; None if not computed.
        trained: description of the training data of the model; by default the training side.
        seen: number of test classes that the model was trained on; if not 0, the remark says "NOT zero-shot".
        undecodable: number of test images that could not be decoded.

    Raises:
        InputError: unknown crop.
    """
    if crop not in ("boxes", "whole", "already cropped"):
        raise InputError(f"'{crop}' is no crop.", "It is boxes, whole or already cropped.")
    counts = divided.counts()
    alone = counts["test"]["classes_of_one_image"] if excluded_queries is None else excluded_queries
    said = [f"NOT zero-shot: the model was trained on {seen} of the test classes"] if seen else []
    if divided.remark:
        said.append(divided.remark)
    return {
        "protocol": divided.protocol.name,
        "about": divided.protocol.about,
        "rule": divided.protocol.rule,
        "data": divided.source.name,
        "train": counts["train"],
        "test": counts["test"],
        "trained": trained,
        "seen_test_classes": seen,
        "complete": divided.complete and not undecodable,
        "crop": crop,
        "resolution": resolution,
        "crop_mode": str(crop_mode),
        "dim": dim,
        "excluded": {"self": True, "queries_without_positive": alone, **counts["left_out"], "undecodable": undecodable},
        "near_duplicates": near_duplicates,
        "remark": "; ".join(said),
    }


def _first_of(count: int, training: int) -> Callable[[Catalog], tuple[Labels, Labels]]:
    """Choose the first `training` of `count` classes, in the official order, for training and the rest for testing."""

    def choose(catalog: Catalog) -> tuple[Labels, Labels]:
        _expect(catalog, count)
        return np.arange(training), np.arange(training, count)

    return choose


def _by_split(count: int) -> Callable[[Catalog], tuple[Labels, Labels]]:
    """Choose classes with images in the "train" split for training and those with images in "test" for testing."""

    def choose(catalog: Catalog) -> tuple[Labels, Labels]:
        _expect(catalog, count)
        known = catalog.labels != UNLABELLED
        train, test = (np.unique(catalog.labels[known & (catalog.splits == split)]) for split in ("train", "test"))
        return train.astype(np.int64), test.astype(np.int64)

    return choose


def _expect(catalog: Catalog, count: int) -> None:
    if len(catalog.class_ids) != count:
        raise InputError(
            f"{catalog.root}: {len(catalog.class_ids):,} classes, and this protocol is for the set of {count:,}.",
            "Use half-zero-shot for data of your own.",
        )


def _halves(catalog: Catalog) -> tuple[Labels, Labels]:
    present = np.unique(catalog.labels[catalog.labels != UNLABELLED]).astype(np.int64)
    return _half(present)


def _half_of_each_family(catalog: Catalog) -> tuple[Labels, Labels]:
    families: dict[str, list[int]] = {}
    for label, name in enumerate(catalog.class_ids):
        families.setdefault(name.partition("-")[0], []).append(label)
    if alone := [family for family, labels in families.items() if len(labels) < 2]:
        raise InputError(
            f"{catalog.root}: the family '{alone[0]}' has one class, which cannot be divided.",
            "This protocol is for the built-in data, whose classes are named FAMILY-MEMBER; use half-zero-shot.",
        )
    halves = [_half(labels) for labels in families.values()]
    train, test = (np.sort(np.concatenate(side)) for side in zip(*halves, strict=True))
    return train, test


def _half(labels: Sequence[int] | Labels) -> tuple[Labels, Labels]:
    middle = len(labels) // 2
    array = np.asarray(labels, np.int64)
    return array[:middle], array[middle:]


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "cars196-zero-shot",
            "Cars196: the first 98 classes train, the last 98 are tested; images of both official splits",
            _first_of(196, 98),
            (98, 98),
            (8_054, 8_131),
        ),
        Protocol(
            "cub200-zero-shot",
            "CUB-200-2011: the first 100 classes train, the last 100 are tested; images of both official splits",
            _first_of(200, 100),
            (100, 100),
            (5_864, 5_924),
        ),
        Protocol(
            "sop-zero-shot",
            "Stanford Online Products: the classes of Ebay_train train, those of Ebay_test are tested",
            _by_split(22_634),
            (11_318, 11_316),
            (59_551, 60_502),
        ),
        Protocol(
            "half-zero-shot",
            "the first half of the classes, in label order, trains (rounded down), the rest is tested",
            _halves,
        ),
        Protocol(
            "builtin-zero-shot",
            "the built-in data: in each family of four classes the first two train, the last two are tested",
            _half_of_each_family,
        ),
    )
}
