"""What a run needs to go on: written beside its place and renamed, so that there is always one whole checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.files import atomic_write, partial_path
from lookalike.training.optim import ModelEma

FORMAT = 2
AGAIN = "Start again without --resume, under another --name."
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class State:
    """How far a run is, besides weights.

    Args:
        step: optimiser steps taken.
        best_score, best_step: the best evaluation so far, by the task's score; -1 before the first.
        stale: evaluations since then.
        seconds: wall-clock time of training so far, over all sittings.
        cpu_seconds: processor time of this process, likewise.
        stopped_early: whether patience ran out.
        start: the `Start` of the first weights as a dict; None where they were random.
    """

    step: int = 0
    best_score: float = -1.0
    best_step: int = -1
    stale: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped_early: bool = False
    start: dict[str, str] | None = None


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / "last.pt").is_file()


def save_last(
    folder: Path,
    state: State,
    network: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ModelEma | None,
    data: str,
) -> None:
    """Write `last.pt`: state, weights, the loss's own weights and memory, optimiser, average, content of the data.

    A function of the recipe and the step needs no place here: order, augmentation, dropout and learning rate.
    """
    folder.mkdir(exist_ok=True)
    content = {
        "format": FORMAT,
        "state": asdict(state),
        "network": network.state_dict(),
        "loss": loss.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.network.state_dict() if average else None,
        "data": data,
    }
    whole = io.BytesIO()
    torch.save(content, whole)  # into memory: it would hide that a disk is full
    atomic_write(folder / "last.pt", whole.getbuffer(), durable=True)


def load_last(
    folder: Path,
    network: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ModelEma | None,
    data: str,
    former: str = "",
) -> State | None:
    """Read `last.pt` into network, loss, optimiser and average.

    Args:
        folder: of the checkpoint.
        network: what is filled, as are the next three.
        loss: with its weights and memory.
        optimizer: with its state.
        average: where the recipe has one.
        data: the content of the data, as `save_last` got it.
        former: how an older version would have named the same data, by their files' times.

    Returns:
        The state to go on from, or None when there is no checkpoint yet.

    Raises:
        InputError: it cannot be read, was written by another version, or its data are not these.
    """
    path = folder / "last.pt"
    if not path.is_file():
        return None
    try:
        content = _read(path)
        if content["data"] not in (data, former):
            raise changed(path)
        network.load_state_dict(content["network"])
        loss.load_state_dict(content["loss"])
        optimizer.load_state_dict(content["optimizer"])
        if average:
            average.network.load_state_dict(content["average"])
        return State(**content["state"])
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def begun_with(folder: Path) -> tuple[str, dict[str, str] | None]:
    """What the run of this checkpoint began with: the content of the data, and the `Start` of its weights as a dict.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    path = folder / "last.pt"
    try:
        content = _read(path)
        return content["data"], State(**content["state"]).start
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def changed(path: Path) -> InputError:
    """The error for a run whose data are not those that it began with."""
    return InputError(
        f"{path}: the data have changed since this run began: their pixels, labels or classes are others.",
        "Bring them back (--data says where they are now), or start a new run under another --name.",
    )


def remove(folder: Path) -> None:
    """Remove the checkpoint of a run that is finished; files that are not ours stay."""
    for name in ("last.pt", "best.safetensors"):
        (folder / name).unlink(missing_ok=True)
        partial_path(folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or not empty
        folder.rmdir()


def _unreadable(path: Path, error: Exception) -> InputError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: this checkpoint cannot be read ({first}).", AGAIN)


def _read(path: Path) -> dict[str, Any]:
    """The content of a `last.pt`; one of `DAMAGE` is raised when it is not whole or holds more than data.

    Raises:
        InputError: it was written by another version.
    """
    with zipfile.ZipFile(path) as archive:  # the checksums in it, which torch.load passes over
        if part := archive.testzip():
            raise ValueError(f"'{part}' in it is damaged")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its own words advise to run what is in there
        raise ValueError("it holds something else than weights and numbers") from None
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    if content["format"] != FORMAT:
        raise InputError(f"{path}: this checkpoint has format {content['format']}, not {FORMAT}.", AGAIN)
    return content


def save_best(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `best.safetensors`, the weights of the best evaluation so far and their checksum."""
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    atomic_write(folder / "best.safetensors", save(tensors, {"sha256": _sha256(tensors)}), durable=True)


def load_best(folder: Path) -> dict[str, Tensor]:
    """Read `best.safetensors`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "best.safetensors"
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
            if (file.metadata() or {}).get("sha256") != _sha256(weights):
                raise ValueError("its checksum is not that of what is in it")
    except (*DAMAGE, SafetensorError) as error:
        raise InputError(f"{path}: the best weights cannot be read ({error}).", "Train the run again.") from None
    return weights


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes of contiguous tensors on the CPU, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
