"""Checkpoints: everything a run needs to continue. Each is written to a temporary file and renamed."""

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
START_AGAIN = "Start again without --resume, into another --out."
READ_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class State:
    """Progress of a run, without its weights.

    Args:
        step: optimizer steps taken.
        best_score: the best evaluation so far, by `Objective.score`; -1 before the first.
        best_step: its step; -1 before the first.
        stale: evaluations since then.
        seconds: wall-clock seconds of training so far, over all sessions of the run.
        cpu_seconds: CPU seconds of the main process, over all sessions of the run.
        stopped_early: whether training was ended by `training.patience`.
        start: the `Start` of the initial weights as a dict; None if they were random.
        precision: "bf16" or "float32"; "" in checkpoints of older versions, which follow the recipe.
    """

    step: int = 0
    best_score: float = -1.0
    best_step: int = -1
    stale: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped_early: bool = False
    start: dict[str, str] | None = None
    precision: str = ""


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
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
    """Write `last.pt`: state, weights, the loss's parameters and memory, optimizer, average, identity of the data."""
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
    torch.save(content, whole)  # into memory: written to a file, it would hide that the disk is full
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
    """Load `last.pt` into network, loss, optimizer and average.

    Args:
        folder: the checkpoint folder.
        network: gets the weights.
        loss: gets its parameters and memory.
        optimizer: gets its state.
        average: gets the averaged weights, if the recipe averages.
        data: identity of the data, as given to `save_last`.
        former: identity of the same data in checkpoints of older versions.

    Returns:
        The state to continue from; None if there is no checkpoint.

    Raises:
        InputError: the file cannot be read, has another format version, or was made with other data.
    """
    path = folder / "last.pt"
    if not path.is_file():
        return None
    try:
        content = _read(path)
        if content["data"] not in (data, former):
            raise data_changed(path)
        network.load_state_dict(content["network"])
        loss.load_state_dict(content["loss"])
        optimizer.load_state_dict(content["optimizer"])
        if average:
            average.network.load_state_dict(content["average"])
        return State(**content["state"])
    except READ_ERRORS as error:
        raise _unreadable(path, error) from None


def read_origin(folder: Path) -> tuple[str, dict[str, str] | None]:
    """Identity of the data and `Start` of the initial weights (as a dict; None: random) of a checkpointed run.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    path = folder / "last.pt"
    try:
        content = _read(path)
        return content["data"], State(**content["state"]).start
    except READ_ERRORS as error:
        raise _unreadable(path, error) from None


def data_changed(path: Path) -> InputError:
    """Error of a run whose data are not those that it was started with."""
    return InputError(
        f"{path}: the pixels, labels or classes of the data have changed since this run was started.",
        "Restore them (--data says where they are now), or train into another --out.",
    )


def remove(folder: Path) -> None:
    """Remove the checkpoint of a finished run; other files in the folder are kept."""
    for name in ("last.pt", "best.safetensors"):
        (folder / name).unlink(missing_ok=True)
        partial_path(folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # missing or not empty
        folder.rmdir()


def _unreadable(path: Path, error: Exception) -> InputError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: this checkpoint cannot be read ({first}).", START_AGAIN)


def _read(path: Path) -> dict[str, Any]:
    """Content of a `last.pt`.

    Raises:
        InputError: it has another format version.
        READ_ERRORS: it is damaged, or holds anything but tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:  # verify the checksums, which torch.load ignores
        if part := archive.testzip():
            raise ValueError(f"its part '{part}' is damaged")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message advises to execute the file's code
        raise ValueError("it holds more than tensors and plain values") from None
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    if content["format"] != FORMAT:
        raise InputError(f"{path}: this checkpoint has format {content['format']}, not {FORMAT}.", START_AGAIN)
    return content


def save_best(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `best.safetensors`: the weights of the best evaluation so far, with a checksum."""
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
                raise ValueError("its checksum does not match")
    except (*READ_ERRORS, SafetensorError) as error:
        raise InputError(f"{path}: the best weights cannot be read ({error}).", "Train the run again.") from None
    return weights


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of contiguous CPU tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
