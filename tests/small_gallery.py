"""A small model, pictures for it, and rows without pictures: what the tests of the gallery stand on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lookalike.gallery.store.base import NewItem
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig

SIZE = 32
ANIMALS = ("cat", "dog", "emu")


def model_folder(folder: Path, *, seed: int = 0, threshold: float | None = None) -> Path:
    """A small classifier of random weights, whose vectors say of which colours a picture is."""
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=ANIMALS,
        class_ids=ANIMALS,
        match_threshold=threshold,
    )
    torch.manual_seed(seed)
    ImageModel(create_model(config.name, config.num_classes, config.options), config).save_pretrained(folder)
    return folder


def picture(path: Path, seed: int, *, side: int = 64) -> Path:
    """A picture of a few random colours that run into one another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def album(folder: Path, *, each: int = 4) -> Path:
    """Pictures in one folder for each of three animals."""
    for number, animal in enumerate(ANIMALS):
        for i in range(each):
            picture(folder / animal / f"{i}.png", 100 * number + i)
    return folder


def rows(count: int, dim: int, *, seed: int = 0) -> list[NewItem]:
    """Rows of random vectors, with labels, metadata and hashes."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    looks = rng.integers(1, 1 << 64, count, dtype=np.uint64).tolist()
    return [
        NewItem(
            f"/photos/{i:04d}.jpg",
            i.to_bytes(32, "big"),
            vectors[i],
            size=1000 + i,
            modified=1_700_000_000_000_000_000 + i,
            label=ANIMALS[i % 3] if i % 4 else None,
            metadata={"year": 2000 + i % 5, "sharp": i % 2 == 0, "by": "Ann" if i % 2 else "Bo, Jr."},
            thumbnail=b"\xff\xd8 no picture" if i % 3 else b"",
            dhash=looks[i],
        )
        for i in range(count)
    ]
