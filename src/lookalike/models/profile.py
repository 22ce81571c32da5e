"""Count the parameters of a network and its operations for one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lookalike.errors import InputError
from lookalike.models.registry import create_model


@dataclass(frozen=True)
class Profile:
    """Number of parameters, and floating-point operations of a forward pass with one image."""

    parameters: int
    flops: int


@torch.inference_mode()
def profile(network: nn.Module, size: int) -> Profile:
    """Count the parameters of a network, and its operations for one image of `size` x `size` pixels.

    A multiply-add is two operations (papers often count it as one). Convolutions and matrix products are counted, as
    `torch.utils.flop_counter` does; norms, activations and pooling, a few per cent, are not. On the "meta" device
    nothing is computed and it takes no time. The mode of the network is restored.

    Raises:
        InputError: the network cannot take images of this size.
    """
    was_training = network.training
    x = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    try:
        with FlopCounterMode(display=False) as counter:
            network.eval()(x)
    except RuntimeError as error:
        raise InputError(f"images of {size} pixels do not go through this network ({error}).", "Try 64.") from None
    finally:
        network.train(was_training)
    return Profile(sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops())


def profile_of(name: str, *, size: int, num_classes: int) -> Profile:
    """The profile of a network by name, with its default options and without memory for its weights.

    Raises:
        InputError: no such network, or it cannot take images of this size.
    """
    with torch.device("meta"):
        return profile(create_model(name, num_classes), size)
