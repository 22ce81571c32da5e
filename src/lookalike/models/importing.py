"""Make a model folder of pretrained weights that are in a file, in a folder, or on the Hub."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.errors import InputError
from lookalike.models import locate, open_clip_weights, serialization
from lookalike.models.serialization import OPEN_CLIP, TIMM, ModelConfig
from lookalike.models.timm_weights import HUB, WEIGHT_FILES, Changes, Imported, from_file, from_folder, from_timm, save


@dataclass(frozen=True)
class ImportedModel:
    """A model folder that was made of pretrained weights."""

    folder: Path
    config: ModelConfig
    remarks: tuple[str, ...]


def import_model(
    weights: str | Path, to: str | Path, *, architecture: str | None = None, **changes: Any
) -> ImportedModel:
    """Make a model folder of pretrained weights for a network of timm, with their preprocessing and class names.

    Or of a pair of an image and a text tower in the format of open_clip, with preprocessing and tokenizer.

    Args:
        weights: a file (.pth, .safetensors), a folder or Hub id in the format of timm or open_clip, or "timm/" and the
            name of weights. A folder or repository in both formats is taken as a pair.
        to: a short name, by which `lookalike.load` then finds the model, or the path of a folder.
        architecture: "timm/" and the name of the network that a file is for; "open_clip" or None for a pair.
        changes: see `Changes`.

    Raises:
        InputError: no such weights or architecture, a pickle with code in it, weights that do not fit, or a model of
            this name exists.
    """
    folder = to if isinstance(to, Path) else locate.imported_folder(to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already.", "Choose another name, or remove it.")
    imported = _imported(weights, architecture, Changes(**changes))
    save(imported, folder)
    return ImportedModel(folder, imported.config, imported.remarks)


def _imported(weights: str | Path, architecture: str | None, changes: Changes) -> Imported:
    path, text = Path(weights).expanduser(), str(weights)
    is_pair = architecture == OPEN_CLIP or text.startswith(open_clip_weights.HUB_PREFIX)
    name = text.removeprefix(open_clip_weights.HUB_PREFIX)
    if is_pair and path.is_file():
        raise InputError(f"{path}: a pair is a folder with {open_clip_weights.CONFIG}.", f"Name it: {path.parent}")
    if path.is_dir() and (is_pair or (path / open_clip_weights.CONFIG).is_file()):
        return open_clip_weights.from_folder(path, str(path), changes)
    if is_pair and locate.HUB_ID.fullmatch(name):
        return open_clip_weights.from_hub(name, changes)
    if path.is_file():
        if architecture is None:
            raise InputError(f"{path}: weights for which network?", "Name it: --as timm/NAME")
        return from_file(path, architecture.removeprefix(TIMM), changes)
    if architecture is not None:
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{weights}: {what}, and --as is for a file of weights.", "Name the file, or leave out --as.")
    if path.is_dir():
        return from_folder(path, str(path), changes)
    if not locate.HUB_ID.fullmatch(text):
        raise InputError(f"{weights}: no such file or folder.", "Check the path.")
    if text.startswith(TIMM):
        return from_timm(text.removeprefix(TIMM), changes)
    with suppress(InputError):  # a repository of timm
        locate.download(text, open_clip_weights.CONFIG)
        is_pair = True
    if is_pair:
        return open_clip_weights.from_hub(text, changes)
    config = locate.download(text, serialization.CONFIG)
    if not locate.is_of_timm(config):
        raise InputError(f"{text}: not in timm's format.", f"If it is a model of Lookalike, use it: --model {text}")
    try:
        locate.download(text, WEIGHT_FILES[0])
    except InputError:  # an older repository
        locate.download(text, WEIGHT_FILES[1])
    with suppress(InputError):  # for its licence
        locate.download(text, serialization.CARD)
    return from_folder(config.parent, f"{HUB}/{text}", changes)
