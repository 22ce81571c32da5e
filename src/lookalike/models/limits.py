"""What a network cannot be given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lookalike.errors import InputError


@torch.no_grad()
def check_size(network: nn.Module, size: int, name: str) -> None:
    """Refuse images so small that a strided convolution would see a single position.

    There is nothing left to stride over, so the recipe is a mistake; and the CPU library behind PyTorch 2.13 (oneDNN)
    then returns uninitialised memory as the bfloat16 gradient of the weights that only ever see padding, which poisons
    a training without a word.

    Args:
        network: any; its mode is put back.
        size: side of the square images in pixels.
        name: what to call the network.

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
