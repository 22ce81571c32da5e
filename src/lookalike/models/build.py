"""A network by name: the one place where a recipe's or a model folder's words become a module."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lookalike.errors import InputError, nearest
from lookalike.models import cubs, resnet
from lookalike.models.heads import EmbeddingNetwork
from lookalike.models.simple_cnn import SimpleCNN
from lookalike.models.weave import WeaveNet
from lookalike.recipe import Head

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "weave": WeaveNet,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "cubs_resnet_1": cubs.cubs_resnet_1,
    "cubs_resnet_2": cubs.cubs_resnet_2,
    "cubs_resnet_3": cubs.cubs_resnet_3,
    "cubs_resnet_4": cubs.cubs_resnet_4,
    "cubs_resnet_5": cubs.cubs_resnet_5,
}
TIMM = "timm/"
LEAST = {"width": 1, "widths": 1, "pairs": 0, "stride": 1, "features": 1, "tokens": 1, "dim": 1}  # of options


def build(name: str, num_classes: int, options: Mapping[str, Any] | None = None, head: Head | None = None) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: one of `NETWORKS`, or "timm/" and the name of a timm model (needs the `timm` extra).
        num_classes: outputs of the classifier.
        options: keyword arguments of its constructor.
        head: an embedding head to stand in the place of the classifier.

    Returns:
        A module with `forward(x)` from normalised images (B, 3, H, W) to logits (B, num_classes), or with a `head` to
        embeddings (B, dim) of length 1; `forward_features(x)` to the last feature map, `num_features`, and the `head`.

    Raises:
        InputError: no such network, no such option (the nearest is named), or a value the network refuses.
    """
    network = _build(name, num_classes, dict(options or {}))
    return EmbeddingNetwork(network, head) if head else network


def _build(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    if name.startswith(TIMM):
        from lookalike.models.timm import TimmNetwork

        return TimmNetwork(name.removeprefix(TIMM), num_classes, **options)
    if name not in NETWORKS:
        raise InputError(
            f"model.name: no network named '{name}'.{nearest(name, NETWORKS)}",
            f"There are {', '.join(NETWORKS)}; or timm/NAME for any timm backbone.",
        )
    known = options_of(name)
    for key in options:
        if key not in known:
            raise InputError(
                f"model.options: '{name}' has no option '{key}'.{nearest(key, known)}",
                f"It has {', '.join(known) or 'none'}; model.options={{}} takes away what the recipe sets.",
            )
    try:
        for key, value in options.items():
            _check_number(key, value)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element")  # refused below
            network = NETWORKS[name](num_classes, **options)
        if empty := [key for key, parameter in network.named_parameters() if not parameter.numel()]:
            raise ValueError(f"{empty[0]} would have no weights")
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"model.options: '{name}' refuses {given} ({reason}).", "Mend that value.") from None
    return network


def _check_number(key: str, value: Any) -> None:
    """Refuse sizes and counts that are none, which PyTorch may take and fail on later.

    Raises:
        ValueError: not a whole number, too small a one, or no finite one.
    """
    for number in value if isinstance(value, list | tuple) else [value]:
        if key in LEAST and (isinstance(number, bool) or not isinstance(number, int) or number < LEAST[key]):
            raise ValueError(f"{key} must be a whole number from {LEAST[key]} on")
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{key} must be finite")


def options_of(name: str) -> dict[str, Any]:
    """The options of one of `NETWORKS` with their defaults."""
    constructor = NETWORKS[name]
    if name.startswith("resnet"):
        parameters = inspect.signature(resnet.ResNet.__init__).parameters
        hidden = {"self", "block", "depths", "num_classes", "attention", "placement"}
    elif name.startswith("cubs"):
        parameters = inspect.signature(cubs.cubs_resnet).parameters
        hidden = {"which", "num_classes"}
    else:
        parameters = inspect.signature(constructor).parameters
        hidden = {"num_classes"}
    return {key: parameter.default for key, parameter in parameters.items() if key not in hidden}
