"""WeaveNet: our own compact network for small images (task 1), 4 to 6 M parameters.

Each stage splits its channels in two. One half goes through a chain of 3x3 pairs; every step of the chain is kept, and
all of them are woven together with the untouched half by a 1x1 convolution, weighed by channel, and added to the input.
So most arithmetic is in dense 3x3 convolutions on few channels, which CPUs run near their peak, while the concatenation
gives later layers direct access to features of every depth.

It stands on: cross-stage partial connections (Wang et al., 2020, arXiv:1911.11929), layer aggregation (Wang et al.,
2022, arXiv:2211.04800), squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lookalike.models.layers import Conv2d, global_average


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(
        Conv2d(inputs, outputs, size, stride),
        nn.BatchNorm2d(outputs),
        nn.SiLU(inplace=True),
    )


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: x scaled per channel by what its global average says (reduction 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.SiLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        weight: Tensor = self.gate(global_average(x))  # (B, C)
        return x * weight[:, :, None, None].to(x.dtype)


class Weave(nn.Module):
    """One stage at one resolution: split, chain, weave, gate, add.

    Args:
        channels: C, of input and output.
        pairs: 3x3 pairs in the chain, each with a shortcut of its own.
    """

    def __init__(self, channels: int, pairs: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = conv(channels, channels, 1)
        self.chain = nn.ModuleList(nn.Sequential(conv(half, half, 3), conv(half, half, 3)) for _ in range(pairs))
        self.fuse = nn.Sequential(
            nn.Conv2d(half * (pairs + 2), channels, 1, bias=False), nn.BatchNorm2d(channels), ChannelGate(channels)
        )
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        strands = list(self.enter(x).chunk(2, dim=1))  # 2 x (B, C/2, H, W)
        for pair in self.chain:
            strands.append(strands[-1] + pair(strands[-1]))
        return self.act(x + self.fuse(torch.cat(strands, dim=1)))  # type: ignore[no-any-return]


class WeaveNet(nn.Module):
    """Stem of stride 4, three `Weave` stages at strides 4, 8 and 16, average pooling, linear classifier.

    Args:
        num_classes: outputs of the classifier.
        widths: channels of the stages.
        pairs: 3x3 pairs in each stage.
        stride: of the stem; 4 is the cheap one for CPUs, 2 sees more.
        dropout: dropped share of the pooled features before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: tuple[int, ...] | list[int] = (96, 192, 384),
        pairs: tuple[int, ...] | list[int] = (2, 2, 2),
        stride: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(pairs):
            raise ValueError(f"widths {list(widths)} and pairs {list(pairs)} must have the same length, one at least")
        if stride not in (2, 4):
            raise ValueError(f"stride must be 2 or 4, not {stride}")
        first = widths[0]
        self.stem = nn.Sequential(conv(3, first // 2, 3, 2), conv(first // 2, first, 3, stride // 2))
        layers: list[nn.Module] = []
        for i, (width, n) in enumerate(zip(widths, pairs, strict=True)):
            if i:
                layers.append(conv(widths[i - 1], width, 3, 2))
            layers.append(Weave(width, n))
        self.stages = nn.Sequential(*layers)
        self.num_features = widths[-1]
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, num_features, H/16, W/16)."""
        return self.stages(self.stem(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map to logits (B, num_classes)."""
        x = global_average(features)  # (B, num_features)
        return self.head(self.dropout(x))  # type: ignore[no-any-return]
