"""The data sets that can be got by name: where they come from, how they are recognised, where they lie."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class File:
    """One file to download.

    Args:
        name: what it is called on disk.
        url: where it is.
        checksum: `md5:` or `sha256:` and the digest in hex, as published; empty for a file on the Hugging Face Hub,
            which announces the SHA-256 and the size itself.
        size_bytes: its length; None where only the server knows it.
    """

    name: str
    url: str
    checksum: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True)
class Mirror:
    """A place that has a whole data set, in one file or several.

    Args:
        name: what it is called in messages.
        files: all of them are needed.
        remark: what a person who gets this copy should know.
    """

    name: str
    files: tuple[File, ...]
    remark: str = ""


@dataclass(frozen=True)
class Source:
    """A data set that can be got.

    Args:
        title: what it is, in a line.
        counts: its images, in words.
        size_bytes: what the first mirror sends.
        mirrors: places to get it from, the official one first.
        layout: what a copy of it on disk has at its top, at least; empty when copies differ.
        by_hand: what to get in another way, and where to put it, when no mirror answers; empty when the first file of
            the first mirror says it all.
    """

    title: str
    counts: str
    size_bytes: int
    mirrors: tuple[Mirror, ...]
    layout: tuple[str, ...]
    by_hand: str = ""


# The server publishes no checksum: MD5 and size are those that many loaders of this zip hold it to.
_TINY_ZIP = File(
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "md5:90528d7ca1a48142e341f4ef8d21d0de",
    248_100_043,
)
_TINY_ON_THE_HUB = f"{HUB}/datasets/zh-plus/tiny-imagenet/resolve/b427d143d5e9bf39d5132c552063f3c5ba3facd6/data"
_TINY_SHARDS = ("train-00000-of-00001-1359597a978bc4fa.parquet", "valid-00000-of-00001-70d52db3c749a935.parquet")

# The official addresses (ai.stanford.edu/~jkrause/cars, and imagenet.stanford.edu for the images) are dead since 2023.
# Revision, files and columns are as public loaders of these copies name them; the import holds the classes to the
# official names. Sizes are rounded: the Hub announces the exact ones.
_CARS_SHARDS = tuple(f"{split}-0000{part}-of-00002.parquet" for split in ("train", "test") for part in (0, 1))
_CARS_ON_THE_HUB = {
    "tanganke/stanford_cars": "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
    "isaacchung/StanfordCars": "09ffe9bc7864d3f1e851529e5c4b7e05601a04fb",
}
_CARS_BY_HAND = (
    "The official server is gone since 2023. Get cars_train/, cars_test/, cars_meta.mat, cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat (or car_ims/ and cars_annos.mat; or a copy in class folders, as on Kaggle) "
    "in another way, put them into one folder, the .mat files into devkit/ in it, and say: "
    "lookalike data import THAT_FOLDER --name cars196"
)

SOURCES: dict[str, Source] = {
    "tiny-imagenet": Source(
        title="Tiny ImageNet: 200 classes, 64 × 64 pixels (Stanford CS231n; for non-commercial research)",
        counts="100,000 training, 10,000 validation, 10,000 unlabelled test images",
        size_bytes=248_100_043,
        mirrors=(
            Mirror("cs231n.stanford.edu", (_TINY_ZIP,)),
            Mirror(
                "Hugging Face (zh-plus/tiny-imagenet)",
                tuple(File(name, f"{_TINY_ON_THE_HUB}/{name}") for name in _TINY_SHARDS),
                remark="This copy has no test images, and calls its classes by their WordNet ids.",
            ),
        ),
        layout=("train", "val"),
    ),
    "cars196": Source(
        title="Cars196 (Stanford Cars): 196 models of cars, whole pictures (for non-commercial research)",
        counts="8,144 training, 8,041 test images",
        size_bytes=1_976_000_000,
        mirrors=tuple(
            Mirror(
                f"Hugging Face ({copy})",
                tuple(File(name, f"{HUB}/datasets/{copy}/resolve/{revision}/data/{name}") for name in _CARS_SHARDS),
                remark="This copy has no boxes. The official server is gone since 2023.",
            )
            for copy, revision in _CARS_ON_THE_HUB.items()
        ),
        layout=(),
        by_hand=_CARS_BY_HAND,
    ),
}


def data_home() -> Path:
    """The folder of all data sets: $LOOKALIKE_DATA, or `data` in the user's data folder. It need not exist yet."""
    if chosen := os.environ.get("LOOKALIKE_DATA"):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("lookalike")) / "data"


def installed(name: str, home: Path | None = None) -> Path | None:
    """The folder of a data set that was downloaded or imported.

    Args:
        name: what it is called.
        home: the folder of all data sets; by default `data_home()`.

    Returns:
        `home/name`; None where there is no such folder, where it is not laid out as the data set of that name, and for
        what cannot be a name (such as "..").
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        return None
    folder = (home or data_home()) / name
    needed = SOURCES[name].layout if name in SOURCES else ()
    return folder if folder.is_dir() and all((folder / part).exists() for part in needed) else None


def mirrors_of(source: Source) -> tuple[Mirror, ...]:
    """The places to get a data set from, in order, with those that the environment names.

    $LOOKALIKE_MIRROR is the address of a folder with the official files, by their names, and is tried first.
    $HF_ENDPOINT stands for the Hugging Face Hub, as everywhere.
    """
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    mirrors = tuple(
        replace(mirror, files=tuple(replace(file, url=file.url.replace(HUB, hub, 1)) for file in mirror.files))
        for mirror in source.mirrors
    )
    if own := os.environ.get("LOOKALIKE_MIRROR", "").rstrip("/"):
        official = source.mirrors[0].files
        mirrors = (Mirror(own, tuple(replace(file, url=f"{own}/{file.name}") for file in official)), *mirrors)
    return mirrors
