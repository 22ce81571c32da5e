"""A shallow, heavily regularised CNN: eight 3x3 convolutions and two wide dense layers."""

from __future__ import annotations

from torch import Tensor, nn

from lookalike.models.layers import Conv2d

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512)
POOL_AFTER = frozenset({0, 1, 3, 5, 7})  # 64 -> 32 -> 16 -> 8 -> 4 -> 2


class SimpleCNN(nn.Module):
    """Convolutions 32-64-128-128-256-256-512-512, batch norm, max-pooling; dense 4096 and 2048 with dropout.

    Max-pooling follows the first, second, fourth, sixth and eighth convolution. For an L2 penalty on every layer, use
    `optimizer.weight_decay` with `decay_all: true`. For image sizes other than 64, maps are average-pooled to the 2x2
    that the dense layers expect.

    Args:
        num_classes: outputs of the classifier.
        dropout: dropped share after each dense layer.
    """

    num_features = 2048
    map_channels = WIDTHS[-1]

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, width in enumerate(WIDTHS):
            layers += [Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(True)]
            if i in POOL_AFTER:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            channels = width
        self.convolutions = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.dense = nn.Sequential(
            nn.Linear(channels * 4, 4096),
            nn.BatchNorm1d(4096),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(4096, 2048),
            nn.BatchNorm1d(2048),
            nn.ReLU(True),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def drop_classifier(self) -> None:
        """Keep only the convolutions."""
        del self.pool, self.dense, self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, 512, H/32, W/32)."""
        return self.convolutions(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map to logits (B, num_classes)."""
        x = self.pool(features).flatten(1)  # (B, 2048)
        return self.head(self.dense(x))  # type: ignore[no-any-return]
