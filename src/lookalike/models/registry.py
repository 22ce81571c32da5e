"""Create a network by its name in a recipe or a model folder."""

from __future__ import annotations

import inspect
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from lookalike.errors import InputError, nearest
from lookalike.models import cubs, resnet
from lookalike.models.heads import EmbeddingNetwork, use_unit_features
from lookalike.models.serialization import OPEN_CLIP, TIMM
from lookalike.models.simple_cnn import SimpleCNN
from lookalike.models.weavenet import WeaveNet
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


# A network may have this much more than the tensors that are stored for it: see `build_for`.
SIZE_FACTOR, MAX_CLASSIFIER_WIDTH, EXTRA_NUMBERS, EXTRA_TENSORS = 3, 16_384, 1_000_000, 256


MIN_OPTION = {"width": 1, "widths": 1, "pairs": 0, "stride": 1, "features": 1, "tokens": 1, "dim": 1}


def create_model(
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    head: Head | None = None,
    *,
    unit_features: bool = False,
) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: one of `NETWORKS`, or "timm/" and the name of a timm model (needs the `timm` extra).
        num_classes: outputs of the classifier.
        options: keyword arguments of its constructor.
        head: an embedding head that replaces the classifier.
        unit_features: the last layer of the classifier takes features that are scaled to length 1.

    Returns:
        A module with `forward(x)` from normalised images (B, 3, H, W) to logits (B, num_classes), or with a `head` to
        embeddings (B, dim) of length 1; `forward_features(x)` to the last feature map, `num_features`, and the `head`.
        The features of a timm network have its own layout; it has `pooled` and `forward_head` to go on from them.

    Raises:
        InputError: no such network, no such option (the nearest is named), or a value the network refuses.
    """
    network = _build(name, num_classes, dict(options or {}))
    if unit_features and not head:
        use_unit_features(network)
    return EmbeddingNetwork(network, head) if head else network


def build_for(
    tensors: Mapping[str, Tensor],
    name: str,
    num_classes: int,
    options: Mapping[str, Any],
    head: Head | None,
    *,
    unit_features: bool = False,
) -> nn.Module:
    """Create the network that stored tensors belong to; refuse one that is far larger before it takes memory.

    A model folder from elsewhere may name a network of any size. Parameters are counted as they are registered; the
    system assigns their memory only when they are written to.

    Args:
        tensors: by name, as they are stored. The network may have more weights while it is built, such as those of a
            classifier that is dropped, but not many.
        name: see `create_model`.
        num_classes: see `create_model`.
        options: see `create_model`.
        head: see `create_model`.
        unit_features: see `create_model`.

    Raises:
        InputError: as `create_model`, or the network would be far larger than what is stored.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    numbers_left = SIZE_FACTOR * stored + MAX_CLASSIFIER_WIDTH * num_classes + EXTRA_NUMBERS
    tensors_left = SIZE_FACTOR * len(tensors) + EXTRA_TENSORS
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal numbers_left, tensors_left
        if threading.get_ident() != thread:  # another one builds a network of its own
            return
        numbers_left -= 0 if tensor is None else tensor.numel()
        tensors_left -= 1
        if numbers_left < 0 or tensors_left < 0:
            raise ValueError(f"far more weights than the {stored:,} that are stored")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        return create_model(name, num_classes, options, head, unit_features=unit_features)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:  # from its head
        raise InputError(f"model.head: cannot be made ({_first(error)}).", "Mend it.") from None
    finally:
        for hook in hooks:
            hook.remove()


def _build(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    if name.startswith(TIMM):
        from lookalike.models.timm import TimmNetwork

        return TimmNetwork(name.removeprefix(TIMM), num_classes, **options)
    if name == OPEN_CLIP:
        from lookalike.models.open_clip import OpenClipNetwork

        if num_classes:
            raise InputError(f"model.name: {OPEN_CLIP} has no classifier.", "Use it for vectors, or another network.")
        return OpenClipNetwork(**options)
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
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError) as error:
        given = ", ".join(f"{key}={value!r:.40}" for key, value in options.items()) or f"{num_classes} classes"
        raise InputError(f"model.options: '{name}' refuses {given} ({_first(error)}).", "Mend that value.") from None
    return network


def _first(error: Exception) -> str:
    """The reason in one line; a readable one if PyTorch could not allocate memory."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "there is not so much memory"
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")


def _check_number(key: str, value: Any) -> None:
    """Refuse sizes and counts that PyTorch would accept and fail on later.

    Raises:
        ValueError: not a whole number, too small, or not finite.
    """
    for number in value if isinstance(value, list | tuple) else [value]:
        if key in MIN_OPTION and (isinstance(number, bool) or not isinstance(number, int) or number < MIN_OPTION[key]):
            raise ValueError(f"{key} must be a whole number from {MIN_OPTION[key]} on")
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


@torch.no_grad()
def check_size(network: nn.Module, size: int, name: str) -> None:
    """Refuse images so small that the input of a strided convolution has a single position.

    Such a recipe is a mistake. Besides, the CPU library of PyTorch 2.13 (oneDNN) then returns uninitialised memory as
    the bfloat16 gradient of the weights that see only padding, which silently ruins the training.

    Args:
        network: any; its mode is restored.
        size: side of the square images in pixels.
        name: of the network, for the error.

    Raises:
        InputError: the images are too small.
    """
    shrunk: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        if max(module.stride) > 1 and max(module.kernel_size) > 1 and max(inputs[0].shape[2:]) == 1:
            shrunk.append(repr(module))

    hooks = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, nn.Conv2d)]
    device = next(network.parameters()).device
    was_training = network.training
    try:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    except AssertionError as error:  # of a transformer of timm
        raise InputError(
            f"{name} does not take images of {size} pixels ({error}).", "Set data.image_size to the size it takes."
        ) from None
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if shrunk:
        raise InputError(
            f"images of {size} pixels are too small for {name}: its maps shrink to one position "
            "before the last stride.",
            "Use larger ones (training.resolution, data.image_size), or a stem that shrinks less (model.options.stem).",
        )
