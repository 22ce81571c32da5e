"""Small data sets on disk: a Tiny ImageNet of three classes, class folders, zips and Hugging Face copies of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from image_factory import encoded, noise

WNIDS = ("n01443537", "n02124075", "n04067472")
WORDS = ("goldfish", "Egyptian cat", "reel")


def jpeg(seed: int) -> bytes:
    """An image of 8 × 8 pixels, of random colours."""
    return encoded(noise(8, 8, seed), "JPEG")


def tiny_imagenet(home: Path) -> Path:
    """The official layout: 3 classes with 3 training and 2 validation images each, and 4 test images."""
    for number, wnid in enumerate(WNIDS):
        images = home / "train" / wnid / "images"
        images.mkdir(parents=True)
        for image in range(3):
            (images / f"{wnid}_{image}.JPEG").write_bytes(jpeg(10 * number + image))
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t1\t6\t7\n")
    for split, count in (("val", 6), ("test", 4)):
        (home / split / "images").mkdir(parents=True)
        for image in range(count):
            (home / split / "images" / f"{split}_{image}.JPEG").write_bytes(jpeg(100 + len(split) * 10 + image))
    lines = [f"val_{image}.JPEG\t{WNIDS[image % 3]}\t0\t0\t7\t7\n" for image in range(6)]
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    words = [f"{wnid}\t{word}, and so on\n" for wnid, word in zip(WNIDS, WORDS, strict=True)]
    (home / "words.txt").write_text("".join(words))
    return home


def class_folders(root: Path, *, images: int = 4) -> Path:
    """Three classes of pictures, without splits."""
    for number, animal in enumerate(("cat", "dog", "owl")):
        (root / animal).mkdir(parents=True)
        for image in range(images):
            (root / animal / f"{image}.jpg").write_bytes(jpeg(1000 * number + image))
    return root


def zip_of(folder: Path, path: Path, top: str = "") -> Path:
    """All files of a folder in a zip, their names after `top`."""
    with zipfile.ZipFile(path, "w", strict_timestamps=False) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def hugging_face(folder: Path, names: tuple[str, ...] = WNIDS) -> Path:
    """A Parquet copy as the Hub's own tools write it: 3 training and 2 validation images of each class."""
    folder.mkdir(parents=True)
    for split, count in (("train", 3), ("valid", 2)):
        rows = [
            {"image": {"bytes": jpeg(100 * label + image + (split == "valid") * 50), "path": None}, "label": label}
            for label in range(len(names))
            for image in range(count)
        ]
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("image", kind), ("label", pa.int64())], metadata=metadata)
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{split}-00000-of-00001.parquet")
    return folder
