"""Check a data set: decode every image; report damaged images, copies across splits, wrong labels and counts."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lookalike.data.catalog import SPLITS, UNLABELLED, Catalog, Split
from lookalike.data.registry import DATASETS, differences, zero_shot_counts
from lookalike.data.scan import sentence
from lookalike.data.tiny_imagenet import NAME as TINY
from lookalike.errors import InputError
from lookalike.hardware import cores, stoppable_threads
from lookalike.image import decode

CHUNK = 256  # images read by a thread at a time
MAX_PRINTED = 10  # findings of a kind that are printed; the report has all

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    Args:
        name: the data set's name.
        root: its folder or zip.
        layout: the layout that was recognised.
        remark: the remark of the catalog.
        counts: images by split and class id; unlabelled ones under "".
        sizes: images by (width, height), most common first, without undecodable ones.
        undecodable: path and reason of each image that cannot be decoded.
        duplicates: groups of paths with the same pixels, in more than one split.
        conflicts: groups of paths with the same pixels and different labels.
        labels: problems with the labels, in words.
        differences: differences from the official counts, in words.
        passed_over: numbers of files that are not images, by kind: `{".heic": 10}`.
        zero_shot: images of the training and of the test classes, if the data set has a zero-shot split.
    """

    name: str
    root: str
    layout: str
    remark: str
    counts: dict[Split, dict[str, int]]
    sizes: dict[tuple[int, int], int]
    undecodable: list[tuple[str, str]]
    duplicates: list[list[str]]
    conflicts: list[list[str]]
    labels: list[str]
    differences: list[str]
    zero_shot: tuple[int, int] | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the data set can be trained on: every image decodes and the labels are right."""
        return not self.undecodable and not self.labels

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if self.undecodable:
            return f"{len(self.undecodable)} images cannot be decoded: replace or remove them."
        if self.labels:
            return f"Not usable: {self.labels[0]}."
        if self.differences:
            return "Usable, but not the official set: say so beside every number measured on it."
        if self.conflicts:
            return "Usable, but some images stand in more than one class: at most one of their labels is right."
        if self.duplicates:
            return "Usable; images in more than one split make results look better than they are."
        return "All is well."

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "name": self.name,
            "root": self.root,
            "layout": self.layout,
            "remark": self.remark,
            "usable": self.usable,
            "verdict": self.verdict,
            "counts": self.counts,
            "sizes": [{"width": size[0], "height": size[1], "images": n} for size, n in self.sizes.items()],
            "undecodable": [{"path": path, "reason": reason} for path, reason in self.undecodable],
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "labels": self.labels,
            "differences": self.differences,
            "zero_shot": self.zero_shot,
            "passed_over": dict(self.passed_over),
        }

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.layout}", f"  {self.root}", *([f"  {self.remark}"] if self.remark else []), ""]
        lines += [_count_line(split, by_class) for split, by_class in self.counts.items()]
        if self.zero_shot is not None:
            first, last = self.zero_shot
            lines.append(f"  zero-shot: {first:,} images of the classes trained on, {last:,} of those tested on")
        lines.append(_size_line(self.sizes))
        lines += [f"  {sentence(self.passed_over)}"] if self.passed_over else []
        lines.append("")
        lines += _section("cannot be decoded", [f"{path}: {reason}" for path, reason in self.undecodable])
        lines += _section("wrong labels", self.labels)
        lines += _section("other than the official counts", self.differences)
        lines += _section("the same image in more than one split", [" = ".join(group) for group in self.duplicates])
        lines += _section("the same image with different labels", [" = ".join(group) for group in self.conflicts])
        return "\n".join([*lines, self.verdict])


@dataclass(frozen=True)
class _Checked:
    """SHA-256 of the pixels and (width, height) of one image, or the reason why it cannot be decoded."""

    digest: bytes = b""
    size: tuple[int, int] | None = None
    fault: str = ""


def check(catalog: Catalog, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
    """Read and decode every image of a catalog.

    Args:
        catalog: the data set.
        workers: threads; by default one per core.
        progress: called with (images done, images in all).
    """
    starts = range(0, len(catalog), CHUNK)
    looks: list[_Checked] = []
    if len(catalog) and catalog.container == "zip":
        _ = _check_image(catalog, 0)  # opens the zip before the threads use it
    with stoppable_threads(workers or cores()) as (threads, stop):
        for chunk in threads.map(partial(_check_chunk, catalog, stop), starts):
            looks += chunk
            if progress is not None:
                progress(len(looks), len(catalog))
    twins = _twins(looks)
    splits, labels, paths = catalog.splits, catalog.labels, catalog.paths
    return CheckReport(
        name=catalog.name,
        root=str(catalog.root),
        layout=_layout(catalog),
        remark=catalog.remark,
        counts=_counts(catalog),
        sizes=dict(Counter(look.size for look in looks if look.size is not None).most_common()),
        undecodable=[(path, look.fault) for path, look in zip(paths, looks, strict=True) if look.fault],
        duplicates=[[paths[row] for row in rows] for rows in twins if len({splits[row] for row in rows}) > 1],
        conflicts=[
            [paths[row] for row in rows] for rows in twins if len({labels[row] for row in rows} - {UNLABELLED}) > 1
        ],
        labels=_label_faults(catalog),
        differences=differences(catalog),
        zero_shot=zero_shot_counts(catalog),
        passed_over=catalog.passed_over,
    )


def _check_chunk(catalog: Catalog, stop: threading.Event, start: int) -> list[_Checked]:
    rows = range(start, min(start + CHUNK, len(catalog)))
    return [_check_image(catalog, row) for row in rows if not stop.is_set()]


def _check_image(catalog: Catalog, row: int) -> _Checked:
    path = catalog.paths[row]
    try:
        data = catalog.read_bytes(row)
        pixels = decode(data, name=path)
        height, width, _ = pixels.shape
        if (box := catalog.boxes[row]) is not None:
            decode(data, box=box, name=path)  # raises for a box outside of the image
    except InputError as error:
        return _Checked(fault=error.message.removeprefix(f"{path}: ").removesuffix("."))
    except MemoryError:
        return _Checked(fault="not enough memory to decode it")
    digest = hashlib.sha256(f"{width} {height}".encode())
    digest.update(pixels.data)
    return _Checked(digest.digest(), (width, height))


def _counts(catalog: Catalog) -> dict[Split, dict[str, int]]:
    counts: dict[Split, dict[str, int]] = {}
    for split in SPLITS:
        rows = catalog.rows_of(split)
        if len(rows):
            found = Counter(catalog.labels[rows].tolist())
            counts[split] = {catalog.class_ids[label] if label >= 0 else "": found[label] for label in sorted(found)}
    return counts


def _twins(looks: list[_Checked]) -> list[list[int]]:
    """Return groups of two or more rows with the same pixels."""
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, look in enumerate(looks):
        if look.digest:
            rows_of[look.digest].append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]


def _label_faults(catalog: Catalog) -> list[str]:
    faults = []
    for split in ("train", "val"):
        unknown = int((catalog.labels[catalog.splits == split] == UNLABELLED).sum())
        if unknown:
            faults.append(f"{unknown} images in {split} have no label")
    trained = set(catalog.labels[catalog.rows_of("train")].tolist())
    empty = [name for label, name in enumerate(catalog.class_ids) if label not in trained]
    spec = DATASETS.get(catalog.name)
    if empty and (spec is None or spec.zero_shot is None):  # a zero-shot split tests on classes without training images
        faults.append(f"{len(empty)} classes have no training images, such as '{empty[0]}'")
    if len(catalog.class_names) < 2:
        faults.append(f"{len(catalog.class_names)} class only")
    return faults


def _layout(catalog: Catalog) -> str:
    inside = "in a zip" if catalog.container == "zip" else "in a folder"
    if (spec := DATASETS.get(catalog.name)) is None:
        return f"{len(catalog.class_ids)} classes {inside}"
    if spec.name != TINY:
        return f"{spec.title} {inside}"
    folders = {catalog.paths[row].rpartition("val/")[2].split("/")[0] for row in catalog.rows_of("val")}
    sorted_into_classes = not folders.isdisjoint(catalog.class_ids)
    official = "validation images sorted into class folders" if sorted_into_classes else "official layout"
    return f"Tiny ImageNet, {official}, {inside}"


def _count_line(split: Split, by_class: dict[str, int]) -> str:
    labelled = [number for class_id, number in by_class.items() if class_id]
    line = f"  {split:<5} {sum(by_class.values()):>9,} images"
    if not labelled:
        return f"{line}  without labels"
    least, most = min(labelled), max(labelled)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{line}  {len(labelled)} classes of {each}"


def _size_line(sizes: dict[tuple[int, int], int]) -> str:
    if not sizes:
        return "  no image can be decoded"
    (width, height), number = next(iter(sizes.items()))
    if len(sizes) == 1:
        return f"  all of {width} × {height} pixels"
    others = sum(sizes.values()) - number
    return f"  {number:,} of {width} × {height} pixels, {others:,} of {len(sizes) - 1} other sizes"


def _section(title: str, findings: list[str]) -> list[str]:
    if not findings:
        return []
    more = [f"    and {len(findings) - MAX_PRINTED} more"] if len(findings) > MAX_PRINTED else []
    return [f"  {title} ({len(findings)}):", *(f"    {finding}" for finding in findings[:MAX_PRINTED]), *more, ""]
