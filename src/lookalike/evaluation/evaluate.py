"""Logits of a network over packed images: the one way in which every number of ours is measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.data.augment import normalise

Progress = Callable[[int, int], None]


@torch.inference_mode()
def logits_of(
    network: nn.Module,
    images: NDArray[np.uint8],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    batch_size: int = 500,
    flip: bool = False,
    precision: str = "float32",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Logits of whole images, one crop, in evaluation mode; the network's mode is put back afterwards.

    Args:
        network: from normalised images (B, 3, H, W) to logits (B, C).
        images: (N, H, W, 3) uint8.
        mean: of RGB in 0..1.
        std: likewise.
        device: where the network is.
        batch_size: images at a time.
        flip: average the logits with those of the mirrored images (flip test-time augmentation).
        precision: "float32", or "bf16" for autocast.
        progress: called with (images done, images in all).

    Returns:
        (N, C) float32.
    """
    was_training = network.training
    network.eval()
    parts = []
    try:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
            x = normalise(batch, mean, std)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = network(x).float()
                if flip:
                    logits = (logits + network(x.flip(3)).float()) / 2
            parts.append(logits.cpu().numpy())
            if progress:
                progress(min(start + batch_size, len(images)), len(images))
    finally:
        network.train(was_training)
    return np.concatenate(parts)
