"""Which device to compute on."""

from __future__ import annotations

import torch

from lookalike.errors import InputError


def choose(name: str) -> torch.device:
    """The device of that name, checked to be there.

    Args:
        name: "auto" (a CUDA GPU, else Apple's, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        InputError: no such device on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if mps else "cpu")
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus)), *(["mps"] if mps else [])]
    if name not in there:
        raise InputError(f"there is no device '{name}' here.", f"Use auto, {', '.join(there)}.")
    return torch.device(name)
