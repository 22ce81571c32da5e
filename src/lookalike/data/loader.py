"""Batches for training: any step's batch can be asked for at any time, and is always the same.

Which images it has is the sampler's to say; augmentation is a function of (seed, step). So nothing has to be remembered
to resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookalike.data import augment
from lookalike.data.sampler import BatchSampler, ShuffledSampler, seeded
from lookalike.recipe import Augment

__all__ = ["AUGMENT", "Batch", "Loader", "seeded"]

AUGMENT = 2  # purpose of a random stream, beside those of `data.sampler` and of training


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, S, S) float32 in channels_last memory, and targets: (B,) int64 labels or, where images were mixed,
    (B, C) float32 shares.
    """

    images: Tensor
    targets: Tensor


class Loader:
    """Augmented training batches from a pack.

    Args:
        images: (N, H, W, 3) uint8, as in a `Pack`.
        labels: (N,) int64, 0..num_classes-1.
        num_classes: C.
        batch_size: images in a whole batch, over all parts.
        settings: the augmentation.
        mean: of RGB in 0..1.
        std: likewise.
        seed: of augmentation and, without a sampler of its own, of the order.
        device: where batches are wanted. A GPU keeps all images in its memory when they fill less than a third of it.
        sampler: which rows of `images` make up a batch; every image once an epoch, shuffled, where there is none.

    Raises:
        ValueError: a sampler with batches of another size.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        num_classes: int,
        *,
        batch_size: int,
        settings: Augment,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        seed: int,
        device: torch.device,
        sampler: BatchSampler | None = None,
    ) -> None:
        self.sampler = ShuffledSampler(len(images), batch_size, seed) if sampler is None else sampler
        if self.sampler.batch_size != batch_size:
            raise ValueError(f"the sampler's batches have {self.sampler.batch_size} images, not {batch_size}")
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.settings = settings
        self.mean, self.std = mean, std
        self.seed = seed
        self.device = device
        self.labels = torch.from_numpy(np.ascontiguousarray(labels))
        self.images = images
        self.resident: Tensor | None = None
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[1] / 3:
            self.resident = torch.from_numpy(np.array(images)).to(device)

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.sampler)

    def epoch_of(self, step: int) -> float:
        """Epochs done before this step, with their fraction."""
        return self.sampler.epoch_of(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers of batch `step`, (batch_size,) int64."""
        return self.sampler.rows(step)

    def batch(self, step: int, size: int, part: int = 0, parts: int = 1) -> Batch:
        """Part `part` of `parts` equal ones of batch `step`, at `size` pixels, on the device.

        The parts together are the batch that one process would see: augmentation is drawn for all of it. Only mixing
        looks no further than the part.
        """
        share = self.batch_size // parts
        start, stop = part * share, (part + 1) * share
        rows = self.rows(step)[start:stop]
        generator = torch.Generator().manual_seed(seeded(self.seed, AUGMENT, step))
        drawn = augment.draw(self.settings, self.batch_size, generator).part(start, stop).to(self.device)
        x = augment.crop_and_flip(self._take(rows), self.settings, drawn)
        x = augment.colour(augment.resize(x, size), self.settings, drawn)
        images = augment.normalise(x, self.mean, self.std)
        images = augment.cutout(images, self.settings.cutout, drawn)
        targets = self.labels[rows].to(self.device, non_blocking=True)
        if self.settings.mixup or self.settings.cutmix:
            images, targets = augment.mix(images, targets, self.num_classes, drawn)
        return Batch(images, targets)

    def _take(self, rows: NDArray[np.int64]) -> Tensor:
        if self.resident is not None:
            return self.resident[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(self.images[rows]).to(self.device, non_blocking=True)
