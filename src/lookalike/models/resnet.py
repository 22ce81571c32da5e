"""Residual networks (He et al., 2016, https://arxiv.org/abs/1512.03385) for small and large images.

One class serves ResNet-18, -34 and -50 and, through `attention`, the CUBS-ResNets. What differs from the paper is
named: the stem, the optional anti-aliased down-sampling, and the zero-initialised last norm of each block (Goyal et
al., 2017, https://arxiv.org/abs/1706.02677).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.models.layers import Conv2d, global_average

Stem = Literal["imagenet", "small", "half", "patch"]
Placement = Literal["every", "stage", "last"]
Attention = Callable[[int], nn.Module]  # channels -> a block that keeps the shape (B, C, H, W)


class BlurPool(nn.Module):
    """Anti-aliased down-sampling by two: a fixed 3x3 binomial filter with stride 2 (Zhang, 2019, arXiv:1904.11486)."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.channels = channels
        self.register_buffer("kernel", (row[:, None] * row).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2, groups=self.channels)


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1, *, act: bool, blur: bool = False) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU (with `act`); with `blur` a stride becomes stride 1 + `BlurPool`."""
    apart = blur and stride > 1
    layers: list[nn.Module] = [
        Conv2d(inputs, outputs, size, 1 if apart else stride),
        nn.BatchNorm2d(outputs),
    ]
    if act:
        layers.append(nn.ReLU(inplace=True))
    if apart:
        layers.append(BlurPool(outputs))
    return nn.Sequential(*layers)


def shortcut(inputs: int, outputs: int, stride: int, blur: bool) -> nn.Module:
    """The identity where the shape stays, else a 1x1 projection with norm (pooled first with `blur`)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if blur and stride > 1:
        return nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), conv_norm(inputs, outputs, 1, act=False))
    return conv_norm(inputs, outputs, 1, stride, act=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, blur: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 3, stride, act=True, blur=blur),
            conv_norm(width, width, 3, act=False),
        )
        self.shortcut = shortcut(inputs, width, stride, blur)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, width, H/stride, W/stride)
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as in "v1.5"), 1x1 to four times the width, beside a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, blur: bool) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 1, act=True),
            conv_norm(width, width, 3, stride, act=True, blur=blur),
            conv_norm(width, outputs, 1, act=False),
        )
        self.shortcut = shortcut(inputs, outputs, stride, blur)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, 4 width, H/stride, W/stride)
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


def make_stem(kind: Stem, width: int) -> nn.Sequential:
    """The first layers: "imagenet" 7x7 stride 2 and max-pool (stride 4 in all), "small" one 3x3 (stride 1), "half" one
    3x3 of stride 2 (a quarter of the work of "small"), "patch" two 3x3 of stride 2 (stride 4 in all, the cheap one for
    CPUs).
    """
    if kind == "imagenet":
        return nn.Sequential(conv_norm(3, width, 7, 2, act=True), nn.MaxPool2d(3, 2, padding=1))
    if kind == "small":
        return conv_norm(3, width, 3, act=True)
    if kind == "half":
        return conv_norm(3, width, 3, 2, act=True)
    if kind != "patch":
        raise ValueError(f"stem must be 'imagenet', 'small', 'half' or 'patch', not {kind!r}")
    return nn.Sequential(conv_norm(3, width // 2, 3, 2, act=True), conv_norm(width // 2, width, 3, 2, act=True))


class ResNet(nn.Module):
    """A residual network with a linear classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: residual blocks in each of the four stages.
        num_classes: outputs of the classifier.
        stem: how the image enters (see `make_stem`).
        width: channels of the first stage; doubled by each further one.
        blur: anti-aliased down-sampling (`BlurPool`) between stages.
        last_stride: of the last stage; 1 keeps its maps as large as those before it, twice the side of the paper's (Luo
            et al., 2019, arXiv:1903.07071), at the cost of a slower last stage and no more parameters.
        attention: makes a block to put after residual blocks, given their channels; None for a plain ResNet.
        placement: after `every` residual block, after the last of each `stage`, or after the `last` of all.
        dropout: dropped share of the pooled features before the classifier.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        *,
        stem: Stem = "small",
        width: int = 64,
        blur: bool = False,
        last_stride: int = 2,
        attention: Attention | None = None,
        placement: Placement = "every",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if placement not in ("every", "stage", "last"):
            raise ValueError(f"placement must be 'every', 'stage' or 'last', not {placement!r}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, not {last_stride}")
        self.stem = make_stem(stem, width)
        strides = (1, 2, 2, last_stride)
        layers: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                layers.append(block(channels, width * 2**stage, strides[stage] if i == 0 else 1, blur))
                channels = width * 2**stage * block.expansion
                ends_stage = i == depth - 1
                here = {"every": True, "stage": ends_stage, "last": ends_stage and stage == len(depths) - 1}[placement]
                if attention is not None and here:
                    layers.append(attention(channels))
        self.blocks = nn.Sequential(*layers)
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.branch[-1][1].weight)  # type: ignore[index]
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, num_features, H', W')."""
        return self.blocks(self.stem(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map to logits (B, num_classes)."""
        x = global_average(features)  # (B, num_features)
        return self.head(self.dropout(x))  # type: ignore[no-any-return]


def resnet18(num_classes: int, **options: object) -> ResNet:
    """ResNet-18: basic blocks 2-2-2-2; `options` are `ResNet`'s keyword arguments."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)  # type: ignore[arg-type]


def resnet34(num_classes: int, **options: object) -> ResNet:
    """ResNet-34: basic blocks 3-4-6-3; `options` are `ResNet`'s keyword arguments."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)  # type: ignore[arg-type]


def resnet50(num_classes: int, **options: object) -> ResNet:
    """ResNet-50: bottleneck blocks 3-4-6-3; `options` are `ResNet`'s keyword arguments."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)  # type: ignore[arg-type]
