"""Pooling of feature maps to vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def global_average(x: Tensor) -> Tensor:
    """The mean over positions: (B, C, H, W) to (B, C).

    Written as pooling because its gradient keeps channels_last memory. That of `x.mean((2, 3))` does not, and the
    convolutions below it then reorder their input: CUBS-ResNet-2 trained a tenth slower with it.
    """
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def global_max(x: Tensor) -> Tensor:
    """The maximum over positions: (B, C, H, W) to (B, C)."""
    return F.adaptive_max_pool2d(x, 1).flatten(1)


# Convolution that trains fast on maps of few positions too.

MOST_POSITIONS = 9  # of the output; from 4x4 on, the ordinary way is as fast


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with an odd kernel, padding of half of it and no bias: maps keep their size over the stride.

    It is the same function with the same parameters, up to rounding. The way through matrix products is taken when
    gradients are wanted on a CPU and the output has at most `MOST_POSITIONS` positions.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        size: side of the kernel, odd.
        stride: 1 keeps the size of the map, 2 halves it (rounded up).
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)
        stride = self.stride[0]
        positions = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        if positions > MOST_POSITIONS or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):  # once, and not for each position
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return by_positions(x, weight, stride)


def by_positions(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution with padding of half the kernel, one matrix product for each position of the output.

    Args:
        x: (B, inputs, H, W).
        weight: (outputs, inputs, K, K), K odd, of the same type.
        stride: in both directions.

    Returns:
        (B, outputs, ceil(H / stride), ceil(W / stride)) in channels_last memory.
    """
    size = weight.shape[2]
    rows = [_meeting(start, size, x.shape[2]) for start in range(-(size // 2), x.shape[2] - size // 2, stride)]
    columns = [_meeting(start, size, x.shape[3]) for start in range(-(size // 2), x.shape[3] - size // 2, stride)]
    image, kernel = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # (B, H, W, inputs), (outputs, K, K, inputs)
    products = [
        F.linear(image[:, in_y, in_x].flatten(1), kernel[:, of_y, of_x].flatten(1))  # (B, outputs)
        for in_y, of_y in rows
        for in_x, of_x in columns
    ]
    together = torch.stack(products, 1)  # (B, positions, outputs)
    return together.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


def _meeting(start: int, size: int, length: int) -> tuple[slice, slice]:
    """Where a kernel of `size` beginning at `start` meets a line of `length`: the slice of the line, of the kernel."""
    low, high = max(start, 0), min(start + size, length)
    return slice(low, high), slice(low - start, high - start)
