"""Training batches: the batch of a step is a function of seed and step, so that resuming needs no saved state.

The sampler chooses the images; augmentation is drawn from (seed, step).
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

AUGMENT = 2  # number of a random stream; `data.sampler` and training have others


@dataclass(frozen=True)
class Batch:
    """Images and targets.

    Args:
        images: (B, 3, S, S) float32 in channels_last memory.
        targets: (B,) int64 labels; (B, C) float32 shares of the classes if images were mixed.
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
        mean, std: of the RGB channels, in 0..1.
        seed: of augmentation and of the default sampler.
        device: where batches go. All images are kept on a GPU if they fill less than a third of its memory.
        sampler: chooses the rows of a batch; by default a `ShuffledSampler`.

    Raises:
        ValueError: the sampler's batches have another size.
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
        """Return the number of images in an epoch."""
        return len(self.sampler)

    def epoch_of(self, step: int) -> float:
        """Return the number of epochs before this step, with fraction."""
        return self.sampler.epoch_of(step)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of batch `step`, (batch_size,) int64."""
        return self.sampler.rows(step)

    def batch(self, step: int, size: int, part: int = 0, parts: int = 1) -> Batch:
        """Return part `part` of `parts` equal parts of batch `step`, at `size` pixels, on the device.

        Augmentation is drawn for the whole batch, so that the parts together are the batch of a single process. Only
        mixing happens within a part.
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
