"""Tensors out of a model folder's safetensors file, into a network, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.folder import CONFIG, HEADER_KEY, WHOLE, check_weights, damaged, read_bytes


def read(path: Path, expected: str, header: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        expected: its SHA-256 by config.json.
        header: what config.json says of network and preprocessing.

    Raises:
        InputError: damaged, cut short, or not the file that config.json was written with.
    """
    data = read_bytes(path)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise damaged(path, error) from None
    check_weights(data, path, expected, header)
    return tensors


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy stored tensors into a network of the same names and shapes.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or kind of number, or holds numbers that are not
            finite; the first such is named.
    """
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        fault = ""
        if name not in tensors:
            fault = "is missing"
        elif name not in own:
            fault = "is none of the network's"
        elif own[name].shape != tensors[name].shape:
            fault = f"is {tuple(tensors[name].shape)}, but the network's is {tuple(own[name].shape)}"
        elif own[name].is_floating_point() != tensors[name].is_floating_point():
            fault = f"is {tensors[name].dtype}, but the network's is {own[name].dtype}"
        if fault:
            raise InputError(
                f"{path}: does not fit the network: '{name}' {fault}.", f"Check the network and options in {CONFIG}."
            )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.to(own[name].dtype).isfinite().all():
            raise InputError(f"{path}: '{name}' holds numbers that are not finite.", WHOLE)
    network.load_state_dict(dict(tensors))


def serialise(state: Mapping[str, Tensor], dtype: torch.dtype, header: str) -> bytes:
    """A state dict as the bytes of a safetensors file: floating numbers as `dtype`, the rest as they are.

    The same numbers give the same bytes (one header key only: the format keeps several in no order).

    Raises:
        InputError: a number that is not finite once it is `dtype`.
    """
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
            if not tensor.isfinite().all():
                raise InputError(f"'{name}' holds numbers that are not finite as {dtype}.", "Save it as float32.")
        tensors[name] = tensor.contiguous()
    return safetensors.torch.save(tensors, {HEADER_KEY: header})
