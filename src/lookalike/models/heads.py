"""Embedding heads, which replace a classifier: from the last feature map to one vector of unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.layers import global_average, global_max
from lookalike.recipe import Head


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic et al., 2018, arXiv:1711.02512): (mean of x^p)^(1/p), with a learned p.

    p = 1 is the average, a large p the maximum. Numbers below `least` count as `least`.
    """

    def __init__(self, p: float = 3.0, least: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.least = least

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C) float32
        return global_average(x.float().clamp(min=self.least).pow(self.p)).pow(1 / self.p)


class EmbeddingHead(nn.Module):
    """Pooling, then a linear layer, or an MLP with one hidden layer (batch norm, ReLU).

    Args:
        channels: of the feature map.
        settings: the head of the recipe.
    """

    def __init__(self, channels: int, settings: Head) -> None:
        super().__init__()
        self.pooling = settings.pooling
        self.projection = settings.projection
        self.gem = GeM() if settings.pooling == "gem" else None
        inputs = 2 * channels if settings.pooling == "both" else channels
        self.dim = inputs if settings.projection else settings.dim  # of the outputs in evaluation mode
        layers: list[nn.Module] = []
        if settings.kind == "mlp":
            layers = [nn.Linear(inputs, settings.hidden, bias=False), nn.BatchNorm1d(settings.hidden), nn.ReLU()]
            inputs = settings.hidden
        layers.append(nn.Linear(inputs, settings.dim))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def pool(self, x: Tensor) -> Tensor:
        """A feature map (B, C, H, W) to (B, C), with `both` to (B, 2 C)."""
        if self.gem is not None:
            return self.gem(x)  # type: ignore[no-any-return]
        if self.pooling == "both":
            return torch.cat([global_average(x), global_max(x)], dim=1)
        return global_max(x) if self.pooling == "max" else global_average(x)

    def forward(self, x: Tensor) -> Tensor:
        """A feature map (B, C, H, W) to (B, D) float32, rows of length 1; D: `settings.dim` in training, else `dim`."""
        pooled = self.pool(x)
        if self.projection and not self.training:
            return F.normalize(pooled.float(), dim=1)
        return F.normalize(self.layers(pooled).float(), dim=1)


class UnitLinear(nn.Linear):
    """A linear classifier of features that are scaled to length 1, which are the vectors of galleries."""

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, C)
        return F.linear(F.normalize(x.float(), dim=-1), self.weight, self.bias)


def use_unit_features(network: nn.Module) -> None:
    """Replace the last layer of a classifier by a `UnitLinear` with the same weights.

    Raises:
        InputError: the classifier does not end with one linear layer.
    """
    head = network.head
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"model.unit_features: the classifier of this network ends with {type(head).__name__}, not a linear layer.",
            "Choose another network.",
        )
    unit = UnitLinear(head.in_features, head.out_features)
    unit.load_state_dict({"bias": unit.bias.detach() * 0, **head.state_dict()})
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is head:
                setattr(parent, name, unit)
                return


class EmbeddingNetwork(nn.Module):
    """A network whose classifier is replaced by an embedding head.

    Args:
        backbone: a network of `create_model`; its classifier is removed.
        settings: the head of the recipe.
    """

    def __init__(self, backbone: nn.Module, settings: Head) -> None:
        super().__init__()
        drop_classifier(backbone)
        self.backbone = backbone
        self.num_features = int(getattr(backbone, "map_channels", backbone.num_features))  # type: ignore[arg-type]
        self.head = EmbeddingHead(self.num_features, settings)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, num_features, H', W')."""
        features = self.backbone.forward_features(x)  # type: ignore[operator]
        as_map = getattr(self.backbone, "feature_map", None)
        return features if as_map is None else as_map(features)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to embeddings (B, dim) float32 of length 1."""
        return self.head(self.forward_features(x))  # type: ignore[no-any-return]


def drop_classifier(network: nn.Module) -> None:
    """Remove the layers above the last feature map; only `forward_features` can be used afterwards.

    A network whose classifier is more than its `head` has a method of this name, and `map_channels`, the channels of
    its last feature map.
    """
    own = getattr(network, "drop_classifier", None)
    if own is not None:
        own()
    else:
        network.head = nn.Identity()
