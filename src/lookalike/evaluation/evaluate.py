"""Outputs of a network over packed images: the one way in which every number of ours is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.data.augment import normalise
from lookalike.models.pooling import global_average

Progress = Callable[[int, int], None]
View = Literal["outputs", "features", "softmax"]


def look(network: nn.Module, x: Tensor, view: View) -> Tensor:
    """One view of a batch of normalised images (B, 3, H, W), float32: "outputs" as they are (logits, or an embedding);
    "features", the last feature map's mean over positions, of length 1; "softmax", the classes' probabilities.
    """
    if view == "features":
        return F.normalize(global_average(network.forward_features(x)).float(), dim=1)  # type: ignore[operator]
    outputs: Tensor = network(x).float()
    return outputs.softmax(1) if view == "softmax" else outputs


def logits_of(network: nn.Module, images: NDArray[np.uint8], **how: Any) -> NDArray[np.float32]:
    """`outputs_of` a classifier."""
    return outputs_of(network, images, view="outputs", **how)


@torch.inference_mode()
def outputs_of(
    network: nn.Module,
    images: NDArray[np.uint8],
    *,
    view: View,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    batch_size: int = 500,
    flip: bool = False,
    precision: str = "float32",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """What a network says of whole images, one crop, in evaluation mode; its mode is put back afterwards.

    Args:
        network: from normalised images (B, 3, H, W) to logits (B, C) or embeddings (B, D).
        images: (N, H, W, 3) uint8.
        view: which output, see `look`.
        mean: of RGB in 0..1.
        std: likewise.
        device: where the network is.
        batch_size: images at a time.
        flip: average with the mirrored images' (flip test-time augmentation).
        precision: "float32", or "bf16" for autocast.
        progress: called with (images done, images in all).

    Returns:
        (N, C) or (N, D) float32.
    """
    was_training = network.training
    network.eval()
    parts = []
    try:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
            x = normalise(batch, mean, std)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs = look(network, x, view)
                if flip:
                    outputs = (outputs + look(network, x.flip(3), view)) / 2
            parts.append(outputs.cpu().numpy())
            if progress:
                progress(min(start + batch_size, len(images)), len(images))
    finally:
        network.train(was_training)
    return np.concatenate(parts)
