"""Protocols: the official halves, to the class and the image; what is missing is said, what overlaps is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.catalog import Catalog, Row, Split
from lookalike.data.synthetic import CLASS_NAMES, families
from lookalike.errors import InputError
from lookalike.evaluation.protocols import PROTOCOLS, Divided, card, named
from lookalike.reports.protocol_table import protocol_words


def catalog(
    counts: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    splits: Sequence[Split] | None = None,
    remark: str = "",
    loose: int = 0,
) -> Catalog:
    """So many images of each class, and some without a label. Each class is in one split, or in two by turns."""
    turns: tuple[Split, Split] = ("train", "test")
    rows = [
        Row(f"{label}/{image}.jpg", label, splits[label] if splits else turns[image % 2])
        for label, count in enumerate(counts)
        for image in range(count)
    ]
    rows += [Row(f"loose/{image}.jpg", -1, "test") for image in range(loose)]
    names = names or [f"class {label}" for label in range(len(counts))]
    return Catalog.from_rows(rows, root=Path("pictures"), class_names=names, name="pictures", remark=remark)


def shared_out(images: int, classes: int) -> list[int]:
    return [images // classes + (label < images % classes) for label in range(classes)]


def whole_set(name: str) -> Catalog:
    """As many classes and images on either side as the full set has."""
    protocol = PROTOCOLS[name]
    assert protocol.classes is not None
    assert protocol.images is not None
    sides = [shared_out(*side) for side in zip(protocol.images, protocol.classes, strict=True)]
    splits: list[Split] = ["train"] * len(sides[0]) + ["test"] * len(sides[1])
    return catalog([*sides[0], *sides[1]], splits=splits if name == "sop-zero-shot" else None)


@pytest.mark.parametrize("name", ["cars196-zero-shot", "cub200-zero-shot", "sop-zero-shot"])
def test_the_full_sets_have_the_official_counts(name: str) -> None:
    divided = named(name).divide(whole_set(name))
    assert divided.complete is True
    assert divided.remark == ""
    about = card(divided, crop="whole", resolution=224, dim=512)
    assert (about["train"]["images"], about["test"]["images"]) == {
        "cars196-zero-shot": (8_054, 8_131),
        "cub200-zero-shot": (5_864, 5_924),
        "sop-zero-shot": (59_551, 60_502),
    }[name]
    assert (about["train"]["classes"], about["test"]["classes"]) == {
        "cars196-zero-shot": (98, 98),
        "cub200-zero-shot": (100, 100),
        "sop-zero-shot": (11_318, 11_316),
    }[name]


def test_cars_keeps_98_classes_on_either_side_and_shares_none() -> None:
    """A split that lets class 98 (from 0) into training keeps 99, and tests on a class that it has seen."""
    whole = whole_set("cars196-zero-shot")
    divided = named("cars196-zero-shot").divide(whole)
    assert divided.training.class_ids == whole.class_ids[:98]
    assert divided.test.class_ids == whole.class_ids[98:]
    assert set(divided.training.ids).isdisjoint(divided.test.ids)
    assert len(divided.training) + len(divided.test) == len(whole) == 16_185
    assert np.unique(divided.training.labels).tolist() == np.unique(divided.test.labels).tolist() == list(range(98))
    assert {"train", "test"} == set(divided.test.splits.tolist())  # images of both official splits


def test_a_part_of_the_set_says_what_there_is() -> None:
    counts = [2 if label in (3, 97, 98, 195) else 0 for label in range(196)]
    divided = named("cars196-zero-shot").divide(catalog(counts, remark="cropped", loose=3))
    assert divided.training.class_ids == ("class 3", "class 97")
    assert divided.test.class_ids == ("class 98", "class 195")
    assert divided.test.labels.tolist() == [0, 0, 1, 1]
    about = json.loads(json.dumps(card(divided, crop="already cropped", resolution=96, dim=64)))
    assert about["complete"] is False
    assert about["remark"] == (
        "cropped; not the full set: train 4 of 8,054 images, test 4 of 8,131 images; "
        "train 2 of 98 classes, test 2 of 98 classes"
    )
    assert about["excluded"] == {"self": True, "queries_without_positive": 0, "unlabelled": 3, "undecodable": 0}
    assert about["near_duplicates"] is None
    assert (about["crop"], about["resolution"], about["dim"], about["data"]) == ("already cropped", 96, 64, "pictures")
    squashed = card(divided, crop="whole", resolution=96, dim=64, crop_mode="squash")
    assert (about["crop_mode"], squashed["crop_mode"]) == ("center", "squash")
    told = [dict(protocol_words(one, {}))["Resolution"] for one in (about, squashed)]
    assert told == ["96 × 96 pixels", "96 × 96 pixels, the whole image squashed to a square"]


def test_one_image_too_many_is_not_the_full_set() -> None:
    counts = [*shared_out(8_055, 98), *shared_out(8_131, 98)]
    divided = named("cars196-zero-shot").divide(catalog(counts))
    assert divided.complete is False
    assert "train 8,055 of 8,054 images" in divided.remark


def test_half_takes_the_classes_that_have_images_in_label_order() -> None:
    divided = named("half-zero-shot").divide(catalog([2, 0, 2, 1, 3, 1]))
    assert divided.training.class_ids == ("class 0", "class 2")
    assert divided.test.class_ids == ("class 3", "class 4", "class 5")
    assert divided.complete is None
    assert divided.counts()["test"] == {"classes": 3, "images": 5, "classes_of_one_image": 2}
    assert card(divided, crop="whole", resolution=64, dim=8)["excluded"]["queries_without_positive"] == 2
    known = card(divided, crop="whole", resolution=64, dim=8, excluded_queries=3, near_duplicates=7)
    assert (known["excluded"]["queries_without_positive"], known["near_duplicates"]) == (3, 7)


def test_builtin_tests_two_classes_of_every_family() -> None:
    divided = named("builtin-zero-shot").divide(catalog([2] * 24, CLASS_NAMES))
    for members in families().values():
        assert set(members[:2]) < set(divided.training.class_ids)
        assert set(members[2:]) < set(divided.test.class_ids)
    assert (len(divided.training.class_ids), len(divided.test.class_ids)) == (12, 12)


def test_every_protocol_says_what_it_is() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.about
        assert "itself left out" in protocol.rule


def divide(name: str, data: Catalog) -> Divided:
    return named(name).divide(data)


@pytest.mark.parametrize(
    ("name", "counts", "said"),
    [
        ("cars196-zero-shot", [2] * 24, "24 classes, and this protocol is for the set of 196"),
        ("cars196-zero-shot", [2] + [0] * 97 + [2] * 98, "finds 1 classes to train on"),
        ("cars196-zero-shot", [2] * 98 + [1] * 98, "no class of two images to test"),
        ("cars196-zero-shot", [2] * 98 + [0] * 98, "no class of two images to test"),
        ("half-zero-shot", [2, 2, 2], "finds 1 classes to train on"),
        ("builtin-zero-shot", [2, 2, 2], "cannot be divided"),
        ("sop-zero-shot", [2] * 22_634, "'class 0' would be trained and tested"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, counts: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        divide(name, catalog(counts))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'cars196-zero-shot'"):
        named("cars-zero-shot")
    divided = named("half-zero-shot").divide(catalog([2] * 4))
    with pytest.raises(InputError, match="is no crop"):
        card(divided, crop="box", resolution=8, dim=8)  # type: ignore[arg-type]
