"""What `export` wrote, run again, and held against the model that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.models.onnx_model import OnnxModel, about_of
from lookalike.models.pretrained import Pretrained

NEIGHBOURS = 10
BATCH = 64


class TorchProgram:
    """A .pt2 file, in PyTorch; see `OnnxModel`."""

    def __init__(self, path: Path) -> None:
        extra = {"lookalike.json": ""}
        try:
            self._module = torch.export.load(path, extra_files=extra).module()
            self.about = about_of(extra["lookalike.json"])
        except Exception as error:  # torch's own errors on a damaged file have no common base
            first = str(error).partition("\n")[0]
            raise InputError(f"{path}: not a model that Lookalike exported ({first}).", "Export it again.") from None
        self.outputs = ("logits", "embedding") if self.about["class_names"] else ("embedding",)

    @torch.inference_mode()
    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """As `OnnxModel.run`."""
        found = self._module(torch.from_numpy(images))
        return {name: one.numpy() for name, one in zip(self.outputs, found, strict=True)}


def read_exported(path: Path, threads: int | None = None) -> OnnxModel | TorchProgram:
    """An exported file, by its ending. For what is raised see the two classes."""
    return TorchProgram(path) if path.suffix == ".pt2" else OnnxModel(path, threads)


@dataclass(frozen=True)
class Agreement:
    """How near an exported model is to its origin, on some images.

    Args:
        images: how many.
        logits: the largest difference of two logits, and `top1` the share of images with the same likeliest class; None
            of a model without classes.
        cosine: the smallest between two embeddings of one image.
        neighbours: the share of each image's ten nearest others, among these images, that both agree on; the mean.
    """

    images: int
    logits: float | None
    top1: float | None
    cosine: float
    neighbours: float

    def faults(self, exact: bool) -> list[str]:
        """What is too far off, in words: of a float32 file nearly everything; of int8 only what makes it useless."""
        top1, neighbours, cosine = (0.9999, 0.999, 0.9999) if exact else (0.9, 0.7, 0.9)
        said = []
        if exact and self.logits is not None and self.logits > 1e-2:
            said.append(f"logits differ by up to {self.logits:.4f}")
        if self.top1 is not None and self.top1 < top1:
            said.append(f"only {self.top1:.1%} of the images have the same likeliest class")
        if self.cosine < cosine:
            said.append(f"embeddings of one image have a cosine of {self.cosine:.4f}")
        if self.neighbours < neighbours:
            said.append(f"only {self.neighbours:.1%} of the nearest neighbours are the same")
        return said


def compare(model: Pretrained, exported: OnnxModel | TorchProgram, images: NDArray[np.uint8]) -> Agreement:
    """Run both on the same images.

    Args:
        model: that was exported.
        exported: the file.
        images: (N, size, size, 3) uint8, twelve at least.

    Raises:
        InputError: fewer, or a file of another model.
    """
    if len(images) < NEIGHBOURS + 2:
        raise InputError(f"{len(images)} images are too few to compare by.", f"Give {NEIGHBOURS + 2} at least.")
    if exported.about["fingerprint"] != model.fingerprint:
        raise InputError("the exported file is of another model.", "Export this one again.")
    parts = [exported.run(images[low : low + BATCH]) for low in range(0, len(images), BATCH)]
    theirs = {name: np.concatenate([part[name] for part in parts]) for name in exported.outputs}
    logits = top1 = None
    if "logits" in theirs:
        ours = model.logits(images)
        logits = float(np.abs(ours - theirs["logits"]).max())
        top1 = float((ours.argmax(1) == theirs["logits"].argmax(1)).mean())
    vectors = model.embed(images)
    cosines = (vectors * theirs["embedding"]).sum(1)
    same = _same_neighbours(vectors, theirs["embedding"])
    return Agreement(len(images), logits, top1, float(cosines.min()), same)


def _same_neighbours(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    nearest = []
    for vectors in (one, other):
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -2)
        nearest.append(np.argpartition(-likeness, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    both = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(both)) / NEIGHBOURS
