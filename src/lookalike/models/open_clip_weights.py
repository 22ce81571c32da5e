"""Pretrained pairs in the format of open_clip, with preprocessing and tokenizer, as a network and a `ModelConfig`.

A folder, or its copy on the Hub, holds open_clip_config.json, a file of weights and, if the tokenizer is not CLIP's, a
tokenizer.json. CLIP's is in the package of open_clip, and is converted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lookalike.errors import InputError
from lookalike.image import ResizeCrop
from lookalike.models import locate, serialization
from lookalike.models.open_clip import OpenClipNetwork, flat, import_open_clip
from lookalike.models.registry import build_for
from lookalike.models.serialization import OPEN_CLIP, TOKENIZER, ModelConfig, TextSettings
from lookalike.models.text import TextTokenizer, fingerprint_of
from lookalike.models.timm_weights import (
    HUB,
    Changes,
    Imported,
    check_finite,
    described_in,
    license_of,
    misfit,
    read_tensors,
)
from lookalike.recipe import validate

CONFIG = locate.OPEN_CLIP_CONFIG
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_CONFIG = "tokenizer_config.json"
HUB_PREFIX = "hf-hub:"  # by which open_clip names models of the Hub
# A text in the pieces that CLIP's tokenizer joins tokens in: contractions, words, single digits, punctuation.
CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def from_hub(name: str, changes: Changes) -> Imported:
    """Take a pair from a Hub repository in the format of open_clip.

    Args:
        name: of the repository, "owner/name".
        changes: what to use in place of what open_clip_config.json says.

    Raises:
        InputError: no such repository or files, or no network; and as `from_folder`.
    """
    config = locate.download(name, CONFIG)
    folder = config.parent
    for file in WEIGHT_FILES[:-1]:
        with suppress(InputError):
            locate.download(name, file)
            break
    else:
        locate.download(name, WEIGHT_FILES[-1], " and ".join(WEIGHT_FILES))
    with suppress(InputError):  # for its licence
        locate.download(name, serialization.CARD)
    tokenizer_folder = folder
    if owner := _cfg(config)["text_cfg"].get("hf_tokenizer_name"):
        try:
            locate.download(name, TOKENIZER)
        except InputError:
            tokenizer_folder = locate.download(owner, TOKENIZER).parent
        with suppress(InputError):
            locate.download(name if tokenizer_folder == folder else owner, TOKENIZER_CONFIG)
    return from_folder(folder, f"{HUB}/{name}", changes, tokenizer_folder)


def from_folder(folder: Path, source: str, changes: Changes, tokenizer_folder: Path | None = None) -> Imported:
    """Take the pair in a folder in the format of open_clip.

    Args:
        folder: with open_clip_config.json and a file of weights.
        source: where it is from, for the model card.
        changes: what to use in place of what open_clip_config.json says.
        tokenizer_folder: with tokenizer.json, if that is another one.

    Raises:
        InputError: a file is missing or damaged, the weights do not fit, or a pair that is not supported.
    """
    path = folder / CONFIG
    cfg = _cfg(path)
    if changes.class_names is not None:
        raise InputError(f"{folder}: has no classifier, so no class names.", "Give them to predict: --labels")
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: none of the files {', '.join(WEIGHT_FILES)}.", "Put the weights there.")
    text_cfg = dict(cfg["text_cfg"])
    with described_in(path):
        kwargs = dict(text_cfg.pop("tokenizer_kwargs", None) or {})
        preprocessing = dict(_json(path).get("preprocess_cfg") or {})
    hub_tokenizer = text_cfg.pop("hf_tokenizer_name", None)
    if changes.size is not None and changes.size != cfg["vision_cfg"].get("image_size", 224):
        raise InputError(f"{folder}: its images have one size.", "Leave out --size.")
    options = flat({**cfg, "text_cfg": text_cfg})
    tensors, _ = read_tensors(weights)
    network = build_for(tensors, OPEN_CLIP, 0, options, None).eval()
    assert isinstance(network, OpenClipNetwork)
    _fill(network, tensors, weights)
    settings, tokenizer = _tokenizer(text_cfg, hub_tokenizer, kwargs, tokenizer_folder or folder)
    with described_in(path):
        config = _describe(network, options, settings, preprocessing, source, changes, folder)
    network.tokenizer = TextTokenizer(tokenizer, settings, str(folder / TOKENIZER))
    remarks = () if config.license else ("the licence of these weights is not known: --license sets it",)
    return Imported(network, config, remarks)


def _cfg(path: Path) -> dict[str, Any]:
    """The configuration of the towers, with both of their sections.

    Raises:
        InputError: not JSON, or not a configuration of open_clip.
    """
    tree = _json(path)
    cfg = tree.get("model_cfg", tree)
    if not isinstance(cfg, dict) or not all(isinstance(cfg.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise InputError(f"{path}: not open_clip's description of a pair.", "It has vision_cfg and text_cfg.")
    if not isinstance(cfg["text_cfg"].get("hf_tokenizer_name"), str | None):
        raise InputError(f"{path}: hf_tokenizer_name is not a name.", "Get a whole copy.")
    return cfg


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: no {path.name}.", "Put it there.")
    tree = serialization.read_json(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a JSON object.", "Get a whole copy.")
    return tree


def _fill(network: OpenClipNetwork, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the weights into the network, converted by open_clip if they are in a format that it knows.

    Raises:
        InputError: they do not fit; the first missing and the first unexpected tensor are named.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    own = network.pair.state_dict()
    with suppress(LookupError, ValueError, RuntimeError, AssertionError):  # then the tensors are named below
        tensors = dict(convert_state_dict(network.pair, tensors))
        if "positional_embedding" in tensors and "positional_embedding" not in own:
            tensors = dict(convert_to_custom_text_state_dict(tensors))
    for key in ("logit_scale", "logit_bias"):  # a number, or an array of one
        if key in tensors and key in own and tensors[key].numel() == 1:
            tensors[key] = tensors[key].reshape(own[key].shape)
    if problem := misfit(own, tensors):
        raise InputError(f"{path}: does not fit {CONFIG}: {problem}.", "Get both files from one place.")
    check_finite(tensors, path)
    network.pair.load_state_dict(tensors)


def _describe(
    network: OpenClipNetwork,
    options: Mapping[str, Any],
    text: TextSettings,
    preprocessing: Mapping[str, Any],
    source: str,
    changes: Changes,
    folder: Path,
) -> ModelConfig:
    """The configuration of the model.

    Raises:
        InputError: images that are not square, or resized in another way than to the shorter side or a square.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    size = network.pair.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    mode = preprocessing.get("resize_mode", "shortest")
    if height != width or mode not in ("shortest", "squash"):
        raise InputError(
            f"{folder}: takes images of {height} × {width}, resized by '{mode}'.",
            "Lookalike runs networks on square images, resized by 'shortest' or 'squash'.",
        )
    return validate(
        ModelConfig,
        {
            "name": OPEN_CLIP,
            "options": dict(options),
            "pooling": "own",
            "image_size": height,
            "crop_mode": ResizeCrop(1.0, preprocessing.get("interpolation", "bicubic"), mode == "squash"),
            "mean": changes.mean or preprocessing.get("mean") or OPENAI_DATASET_MEAN,
            "std": changes.std or preprocessing.get("std") or OPENAI_DATASET_STD,
            "class_names": (),
            "class_ids": (),
            "temperature": float(np.exp(-network.pair.logit_scale.detach().double().numpy()).item()),
            "temperature_remark": "as trained",
            "text": text.model_dump(),
            "source": source,
            "license": changes.license or license_of(folder) or "",
        },
        str(folder / CONFIG),
    )


# Tokenizers


def _tokenizer(
    text_cfg: Mapping[str, Any], hub_tokenizer: str | None, kwargs: dict[str, Any], folder: Path
) -> tuple[TextSettings, str]:
    """The settings of the text tower, and the content of tokenizer.json.

    Raises:
        InputError: settings that are not supported, or a tokenizer that is not there as tokenizer.json.
    """
    clean = kwargs.pop("clean", "whitespace" if hub_tokenizer else "lower")
    strip = kwargs.pop("strip_sep_token", False)
    if kwargs:
        raise InputError(f"{folder / CONFIG}: tokenizer_kwargs '{next(iter(kwargs))}' is not supported.", "Remove it.")
    pad_id, blank_id = 0, None
    if hub_tokenizer is None:
        content = clip_tokenizer()
    else:
        path = folder / TOKENIZER
        if not path.is_file():
            raise InputError(
                f"{folder}: no {TOKENIZER}.", f"Put there the {TOKENIZER} of {hub_tokenizer}, from the Hub."
            )
        content = path.read_text(encoding="utf-8")
        pad_id = _token_id(folder, content, "pad_token")
        blank_id = _token_id(folder, content, "sep_token") if strip else None
    settings = {
        "context_length": text_cfg.get("context_length", 77),
        "pad_id": pad_id,
        "clean": clean,
        "blank_id": blank_id,
        "tokenizer": fingerprint_of(content),
    }
    return validate(TextSettings, settings, str(folder / CONFIG)), content


def _token_id(folder: Path, content: str, role: str) -> int:
    """The id of the token that tokenizer_config.json gives a role, such as "pad_token".

    Raises:
        InputError: it names none, or one that the tokenizer does not have.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_CONFIG
    token = _json(path).get(role)
    name = token.get("content") if isinstance(token, dict) else token
    try:
        id = Tokenizer.from_str(content).token_to_id(str(name))
    except Exception as error:  # the library raises no other class
        raise InputError(
            f"{folder / TOKENIZER}: not a file of the library tokenizers ({error}).", "Replace it."
        ) from None
    if id is None:
        raise InputError(f"{path}: {role} is {name!r}, which {TOKENIZER} does not have.", "Get both from one place.")
    return int(id)


def clip_tokenizer() -> str:
    """CLIP's own tokenizer, which is in the package of open_clip, as the content of a tokenizer.json."""
    import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    simple = SimpleTokenizer()
    tokenizer = Tokenizer(models.BPE(vocab=simple.encoder, merges=list(simple.bpe_ranks), end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (simple.decoder[id] for id in simple.all_special_ids)
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, simple.sot_token_id), (end, simple.eot_token_id)],
    )
    return str(tokenizer.to_str())
