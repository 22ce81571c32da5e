"""Pretrained weights for networks of timm, with their preprocessing, as a network and a `ModelConfig`.

Three sources: timm's own weights by name; a file of weights for an architecture of timm; a folder (or its copy on the
Hub) in timm's format, with config.json and weights. A pickle is read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from lookalike.errors import InputError, counted
from lookalike.image import ResizeCrop
from lookalike.models import serialization
from lookalike.models.inference import run_batches, vector_view
from lookalike.models.open_clip import OpenClipNetwork
from lookalike.models.registry import build_for
from lookalike.models.serialization import TIMM, ModelConfig
from lookalike.models.timm import REFUSED, TimmNetwork, import_timm, unknown_model
from lookalike.recipe import validate

HUB = "https://huggingface.co"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # of a folder, in order
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys of checkpoints that hold the weights
PREFIXES = ("module.", "model.", "_orig_mod.")  # of data-parallel, wrapped and compiled models
COUNTER = "num_batches_tracked"  # of a batch norm; old files lack it, and inference does not use it
DATASETS = {
    "imagenet-1k": "ImageNet-1k",
    "imagenet-12k": "ImageNet-12k",
    "imagenet-21k-miil": "ImageNet-21k (MIIL)",
    "imagenet-21k-goog": "ImageNet-21k (Google)",
    "imagenet-22k": "ImageNet-22k",
    "imagenet-22k-ms": "ImageNet-22k (Microsoft)",
}
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # in PyTorch's message: a function or class that a pickle may not name


@dataclass(frozen=True)
class Changes:
    """What to use in place of what timm says of some weights; None: as timm says.

    Args:
        size: side of the input images in pixels.
        mean: of the RGB channels, 0 to 1.
        std: of the RGB channels, 0 to 1.
        class_names: in the order of the classifier.
        license: of the weights.
    """

    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    class_names: Sequence[str] | None = None
    license: str | None = None


@dataclass(frozen=True)
class Imported:
    """A network with pretrained weights, its description, and remarks for the user on how they were read."""

    network: TimmNetwork | OpenClipNetwork
    config: ModelConfig
    remarks: tuple[str, ...] = ()


def save(imported: Imported, folder: Path) -> None:
    """Write a model folder.

    Raises:
        InputError: the folder cannot be written.
    """
    network, config = imported.network, imported.config
    blank = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    (vectors,) = run_batches(network, [blank], vector_view(network), mean=config.mean, std=config.std)
    serialization.save(folder, config, network, vectors.shape[1])


# timm's own weights


def from_timm(name: str, changes: Changes | None = None, *, local_files_only: bool = False) -> Imported:
    """Take the weights that timm has under a name. They are downloaded, or taken from the cache of the Hub.

    Args:
        name: such as "resnet50.a1_in1k"; without a tag, timm's default weights of the architecture.
        changes: what to use in place of what timm says.
        local_files_only: use only the cache.

    Raises:
        InputError: no such name (the nearest is named), no weights of it, or they cannot be downloaded.
    """
    timm, changes = import_timm(name), changes or Changes()
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False) if _is_known(timm, name) else None
    if cfg is None:
        raise unknown_model(name)
    if not cfg.has_weights:
        raise InputError(f"timm/{name}: timm has no weights for it.", "'lookalike models import' takes a file of them.")
    where = f"{HUB}/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)
    options = {} if changes.size is None or not cfg.fixed_input_size else {"img_size": changes.size}
    _download(name, cfg, local_files_only)
    is_projection = changes.class_names is None and _is_projection(cfg.num_classes, cfg.label_names)
    network = TimmNetwork(name, 0 if is_projection else cfg.num_classes, pretrained=True, **options)
    config = _describe(f"{TIMM}{name}", cfg.to_dict(), network.num_classes, options, where, changes)
    return Imported(network.eval(), config, (_no_classes(cfg.num_classes),) if is_projection else ())


def _is_projection(outputs: int, label_names: Sequence[str] | None) -> bool:
    """Whether the last layer of timm's own weights is no classifier, such as CLIP's projection into the space of texts.

    timm calls it a classifier all the same; those of classifiers are classes of ImageNet, or have names.
    """
    from timm.data import infer_imagenet_subset

    return bool(outputs) and not label_names and infer_imagenet_subset({"num_classes": outputs}) is None


def _no_classes(outputs: int) -> str:
    return f"the {outputs:,} outputs of its last layer are no known classes: it was left out"


def _is_known(timm: Any, name: str) -> bool:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return False
    return not tag or name in timm.list_models(f"{architecture}.*", pretrained=True)


def _download(name: str, cfg: Any, local_files_only: bool) -> None:
    """Get the weights into the cache of the Hub, from where timm reads them.

    Raises:
        InputError: there is no network, or the weights are gone.
    """
    if not cfg.hf_hub_id:
        return  # timm downloads from the URL
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined, unused-ignore]
        EntryNotFoundError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    file = cfg.hf_hub_filename or "model.safetensors"
    page = f"{HUB}/{cfg.hf_hub_id}"
    try:
        hf_hub_download(cfg.hf_hub_id, file, local_files_only=local_files_only)
    except LocalEntryNotFoundError:
        raise InputError(
            f"timm/{name}: its weights are not on this machine, and the Hub cannot be reached.",
            f"Connect to the network; or download {file} and config.json from {page} elsewhere, put both into one "
            "folder, and run: lookalike models import FOLDER --name NAME",
        ) from None
    except EntryNotFoundError:
        return  # timm knows other names of the file
    except RepositoryNotFoundError:
        raise InputError(f"timm/{name}: {page} is gone, private or gated.", "It may need 'hf auth login'.") from None
    except HTTPError as error:
        raise InputError(f"timm/{name}: {page}: {str(error).partition(chr(10))[0]}.", "Try again later.") from None


# Files and folders


def from_folder(folder: Path, source: str, changes: Changes | None = None) -> Imported:
    """Take the model in a folder in timm's format: config.json with the architecture, and a file of weights.

    Args:
        folder: that holds both files.
        source: where it is from, for the model card.
        changes: what to use in place of what config.json says.

    Raises:
        InputError: a file is missing or damaged, an unknown architecture, or weights that do not fit it.
    """
    timm = import_timm(folder.name)
    parse = timm.models._hub._parse_model_cfg
    path = folder / serialization.CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: no {path.name}, so not a folder in timm's format.", "Name the file.")
    about = serialization.read_json(path)
    with described_in(path):
        cfg, name, options = parse(about, {})
        if not isinstance(name, str):
            raise TypeError(f"architecture: {name!r}")
        tagged = f"{name}.{cfg.get('tag')}"
        if _is_known(timm, tagged) and timm.get_pretrained_cfg(tagged).num_classes == cfg.get("num_classes"):
            name = tagged  # as timm names these weights
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: none of the files {', '.join(WEIGHT_FILES)}.", "Put the weights there.")
    changes = changes or Changes()
    if changes.license is None and not cfg.get("license"):
        changes = replace(changes, license=license_of(folder))
    return from_file(weights, name, changes, cfg=cfg, options=options, source=source)


@contextmanager
def described_in(path: Path) -> Iterator[None]:
    """Turn what values of wrong types in a description of a model raise into an `InputError` that names the file."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        raise InputError(f"{path}: not a description of a model ({error!r:.200}).", "Get a whole copy.") from None


def license_of(folder: Path) -> str | None:
    """The licence that the model card in a folder names."""
    from huggingface_hub import metadata_load

    try:
        about = metadata_load(folder / serialization.CARD) or {}
    except (OSError, ValueError):
        return None
    return str(about["license"]) if "license" in about else None


def from_file(
    path: Path,
    name: str,
    changes: Changes | None = None,
    *,
    cfg: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    source: str = "",
) -> Imported:
    """Take a file of weights for an architecture of timm: .safetensors, or a pickle of PyTorch.

    Args:
        path: of the file.
        name: of the architecture, such as "tf_efficientnet_lite0"; with a tag, the preprocessing of those weights.
        changes: what to use in place of what timm says of the architecture.
        cfg: what is known of the weights, as timm's `PretrainedCfg`; None: what timm says.
        options: keyword arguments of `timm.create_model`.
        source: where the file is from, for the model card; empty: its name and SHA-256.

    Raises:
        InputError: no such architecture, a file that cannot be read or contains code, or weights that do not fit.
    """
    timm, changes = import_timm(name), changes or Changes()
    if not _is_known(timm, name):
        raise unknown_model(name)
    if refused := sorted((options or {}).keys() & (REFUSED | {"pretrained"})):
        raise InputError(f"{path}: its config.json sets '{refused[0]}', which is not taken.", "Remove it there.")
    if not path.is_file():
        raise InputError(f"{path}: no such file.", "Name a file of weights.")
    registered = timm.get_pretrained_cfg(name, allow_unregistered=True)
    known = registered.to_dict(remove_source=True) if registered else {}
    known.pop("license", None)  # of timm's weights, which these may not be
    description = path if cfg is None else path.with_name(serialization.CONFIG)
    cfg = {**known, **(cfg or {})}
    tensors, in_order = read_tensors(path)
    with described_in(description):
        counts = _possible_classes(tensors, cfg)
    given = dict(options or {})
    if changes.size is not None and cfg.get("fixed_input_size"):
        given["img_size"] = changes.size
    network, how = _fitted(tensors, in_order, name, counts, given, path)
    remarks = [how] if how else []
    outputs = network.num_classes
    own = changes.class_names is None and registered is not None and registered.num_classes == outputs
    if own and _is_projection(outputs, cfg.get("label_names")):
        network.drop_classifier()
        remarks.append(_no_classes(outputs))
    num_classes = network.num_classes
    with described_in(description):
        config = _describe(f"{TIMM}{name}", cfg, num_classes, given, source or f"{path.name}, {_sha256(path)}", changes)
    if num_classes and config.class_names[0] == _unnamed(0):
        remarks.append(f"the names of its {counted(num_classes, 'class')} are not known: --classes FILE sets them")
    if not config.license:
        remarks.append("the licence of these weights is not known: --license sets it")
    return Imported(network.eval(), config, tuple(remarks))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file of weights by name, and whether they are in the order in which they were saved.

    Raises:
        InputError: damaged, without tensors, or a pickle that holds more than data.
    """
    content: Any
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            content = safetensors.torch.load(serialization.read_bytes(path))
        except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise serialization.damaged(path, error) from None
    else:
        content = _read_pickle(path)
    while nested := next((key for key in NESTED if isinstance(_entry(content, key), Mapping)), None):
        content = content[nested]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no state dict: no tensors by name.", "Save model.state_dict() in it.")
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors, path.suffix != ".safetensors"  # a safetensors file is sorted by name


def _entry(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _read_pickle(path: Path) -> Any:
    size = 0
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):  # which may be compressed
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
        serialization.check_memory(path, size)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm saves its options beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (named := _GLOBAL.search(str(error))):
            raise InputError(f"{path}: damaged, or not a file of weights.", "Get a whole copy.") from None
        raise InputError(
            f"{path}: a pickle with more than weights in it ({named[1]}), which could run any code; it was not opened.",
            "Ask for the weights as safetensors, or have their owner save model.state_dict() alone.",
        ) from None
    except MemoryError:
        raise serialization.too_large(path, size) from None
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: damaged, or not a file of PyTorch ({first}).", "Get a whole copy.") from None


# Weights into a network


def _fitted(
    tensors: Mapping[str, Tensor],
    in_order: bool,
    name: str,
    counts: Sequence[int],
    options: Mapping[str, Any],
    path: Path,
) -> tuple[TimmNetwork, str]:
    """The network with these weights, and how they were matched if it was not by name. `counts`: of its classes.

    Raises:
        InputError: they do not fit; the first missing and the first unexpected tensor are named.
    """
    problem = ""
    for num_classes in counts:
        network = build_for(tensors, f"{TIMM}{name}", num_classes, options, None)
        assert isinstance(network, TimmNetwork)
        own = {key: tensor for key, tensor in network.network.state_dict().items() if not key.endswith(COUNTER)}
        for matched, how in _matches(network, own, tensors, in_order):
            if found := misfit(own, matched):
                problem = problem or found
                continue
            check_finite(matched, path)
            network.network.load_state_dict({key: matched[key] for key in own}, strict=False)
            return network, how
    raise InputError(
        f"{path}: does not fit timm/{name}: {problem}.", "Name the architecture of these weights: --as timm/NAME"
    )


def _possible_classes(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> list[int]:
    """Numbers of classes that the file may have, most probable first; 0: without a classifier."""
    layers = cfg.get("classifier") or ()
    keys = [f"{layer}.weight" for layer in ((layers,) if isinstance(layers, str) else layers)]
    found = [len(tensors[key]) for key in keys if key in tensors and tensors[key].ndim]
    last = list(tensors.values())[-1]
    others = [int(cfg.get("num_classes") or 0), len(last) if last.ndim == 1 else 0]
    most = max(max(tensor.shape, default=0) for tensor in tensors.values())  # a classifier has a row for each class
    return list(dict.fromkeys(found[:1] or [*(each for each in others if 0 <= each <= most), 0]))


def _matches(
    network: TimmNetwork, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], in_order: bool
) -> Sequence[tuple[Mapping[str, Tensor], str]]:
    """Ways to give the file's tensors the network's names: as they are, converted by timm, and in their order."""
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith(COUNTER)}
    ways: list[tuple[Mapping[str, Tensor], str]] = [(bare, "")]
    convert: Callable[..., Any] | None = getattr(
        sys.modules[type(network.network).__module__], "checkpoint_filter_fn", None
    )
    if misfit(own, bare) and convert is not None:
        try:
            converted = dict(convert(dict(tensors), network.network))
        except Exception:  # written for other files than this one
            converted = {}
        kept = {key: value for key, value in converted.items() if not key.endswith(COUNTER)}
        ways.append((kept, "its tensors have other names or sizes than the network's; timm's own conversion was used"))
    if in_order and len(bare) == len(own) and [_kind(key) for key in bare] == [_kind(key) for key in own]:
        renamed = dict(zip(own, bare.values(), strict=True))
        how = "its tensors have other names than timm's; all agree in order, kind and shape, and were matched so"
        ways.append((renamed, f"{counted(len(bare), 'tensor')}: {how}"))
    return ways


def _kind(key: str) -> str:
    """The last part of a tensor's name, such as "weight" or "running_mean"."""
    return key.rpartition(".")[2]


def misfit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, unexpected or of another shape, as a clause; empty if all fit."""
    missing = next((key for key in own if key not in tensors), None)
    unexpected = next((key for key in tensors if key not in own), None)
    said = [f"'{missing}' is missing"] if missing else []
    said += [f"'{unexpected}' is none of its tensors"] if unexpected else []
    if said:
        return ", and ".join(said)
    for key, tensor in own.items():
        if tensors[key].shape != tensor.shape:
            return f"'{key}' is {tuple(tensors[key].shape)}, but the network's is {tuple(tensor.shape)}"
    return ""


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors with numbers that are not finite.

    Raises:
        InputError: there are some; the first tensor is named.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise InputError(f"{path}: '{key}' holds numbers that are not finite.", "Get a whole copy.")


# The description


def _describe(
    name: str, cfg: Mapping[str, Any], num_classes: int, options: Mapping[str, Any], source: str, changes: Changes
) -> ModelConfig:
    """The configuration of a model from what timm says of its weights.

    Raises:
        InputError: images that are not square RGB, or a number of class names that is not the classifier's.
    """
    from timm.data import resolve_data_config

    how = resolve_data_config(pretrained_cfg=dict(cfg))
    channels, height, width = how["input_size"]
    if channels != 3 or height != width or how["crop_mode"] not in ("center", "squash"):
        raise InputError(
            f"{name}: takes images of {channels} channels, {height} × {width}, cut by '{how['crop_mode']}'.",
            "Lookalike runs networks on square RGB images, cut by 'center' or 'squash'.",
        )
    names, ids, dataset = _classes(cfg, num_classes, changes.class_names)
    return validate(
        ModelConfig,
        {
            "name": name,
            "options": dict(options),
            "pooling": "own",
            "image_size": changes.size or height,
            "crop_mode": ResizeCrop(how["crop_pct"], how["interpolation"], how["crop_mode"] == "squash"),
            "mean": changes.mean or how["mean"],
            "std": changes.std or how["std"],
            "class_names": names,
            "class_ids": ids,
            "dataset": dataset,
            "source": source,
            "license": changes.license or cfg.get("license") or "",
        },
        name,
    )


def _classes(
    cfg: Mapping[str, Any], num_classes: int, given: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str], str]:
    """Names and ids of the classes, and the data set that they are from; "" if it is not known."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if given is not None:
        if len(given) != num_classes:
            raise InputError(
                f"{counted(len(given), 'class name')} for a classifier of {counted(num_classes, 'class')}.",
                "Give one name for each class, in the order of the classifier.",
            )
        return given, given, ""
    if not num_classes:
        return (), (), ""
    ids = [str(each) for each in cfg.get("label_names") or ()]
    if len(ids) == num_classes:
        described = cfg.get("label_descriptions") or {}
        return [str(described.get(each, each)) for each in ids], ids, ""
    if subset := infer_imagenet_subset({"num_classes": num_classes}):
        info = ImageNetInfo(subset)
        synsets = info.label_names()
        return [_first_lemma(each) for each in info.label_descriptions()], synsets, DATASETS.get(subset, subset)
    unnamed = [_unnamed(label) for label in range(num_classes)]
    return unnamed, unnamed, ""


def _first_lemma(description: str) -> str:
    """The first of the synonyms that describe a class of ImageNet."""
    return description.partition(",")[0]


def _unnamed(label: int) -> str:
    return f"class {label}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
