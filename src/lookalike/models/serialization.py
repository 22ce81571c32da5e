"""Read and write the files of a model folder: config.json, model.safetensors, README.md, and maybe tokenizer.json.

A folder may come from anybody, so files are checked before they are used. Importing this module loads no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, model_validator
from safetensors import SafetensorError

from lookalike.errors import InputError
from lookalike.files import atomic_file, cannot_write, sync
from lookalike.image import CropMode, ResizeCrop
from lookalike.recipe import Fraction, Head, Positive, Scalar, Section, validate

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CONFIG, CARD, TOKENIZER = "model.safetensors", "config.json", "README.md", "tokenizer.json"


TIMM = "timm/"  # prefix of the names of timm models
OPEN_CLIP = "open_clip"  # the name of pairs of an image and a text tower
DEFAULT, DEFAULT_FOLDER = "default", Path(__file__).parent / "default"  # the packaged model

HEADER_KEY = "lookalike"  # of the metadata in model.safetensors
MAX_CONTEXT = 4096  # tokens of a text
MAX_CONFIG_BYTES = 64 << 20  # enough for a million classes
WHOLE = "Get a whole copy of the model folder."  # the remedy for damage
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


Precision = Literal["float32", "float16"]
SectionT = TypeVar("SectionT", bound=Section)


def read_config(cls: type[SectionT], path: Path) -> tuple[SectionT, str]:
    """Read config.json: the configuration, and the fingerprint that the weights must have.

    Raises:
        InputError: not JSON, another format version, or a key or value that is not valid.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or "format" not in tree or "name" not in tree:
        raise InputError(f"{path}: not the configuration of a Lookalike model.", "Point at another folder.")
    if tree["format"] != 1:
        raise InputError(
            f"{path}: format {tree['format']!r}; this version of Lookalike reads 1.",
            "Update Lookalike.",
        )
    fingerprint = tree.pop("fingerprint", None)
    if not isinstance(fingerprint, str):
        raise InputError(f"{path}: no fingerprint.", WHOLE)
    return validate(cls, tree, str(path)), fingerprint


def read_json(path: Path) -> Any:
    """Read a JSON file of a model.

    Raises:
        InputError: it cannot be read, is not JSON, or larger than `MAX_CONFIG_BYTES`.
    """
    try:
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise InputError(f"{path}: {size:,} bytes are too many for the configuration of a model.", WHOLE)
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}).", WHOLE) from None


def read_bytes(path: Path) -> bytes:
    """Read a file of weights.

    Raises:
        InputError: it cannot be read, or the network would not fit into the memory of this machine.
    """
    try:
        size = path.stat().st_size
        check_memory(path, size)
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, error) from None
    except MemoryError:
        raise too_large(path, size) from None


def check_memory(path: Path, size: int) -> None:
    """Check that weights of `size` bytes, as a file and as a network, fit into the memory of this machine.

    Raises:
        InputError: they do not.
    """
    if 2 * size > _memory():
        raise too_large(path, size)


def too_large(path: Path, size: int) -> InputError:
    """Return the error for weights of `size` bytes that do not fit into memory."""
    return InputError(
        f"{path}: takes {2 * size / 2**30:,.1f} GiB of memory, more than there is.",
        "Use a machine with more, or a smaller model.",
    )


def _memory() -> float:
    """Bytes of memory of this machine; infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def check_weights(data: bytes, path: Path, expected: str, header: str) -> None:
    """Check that a safetensors file is the one that config.json was written with.

    Args:
        data: the content of the file.
        path: of the file, for messages.
        expected: its SHA-256 according to config.json.
        header: network and preprocessing according to config.json; the file must contain the same.

    Raises:
        InputError: another file, or a damaged one.
    """
    if (found := fingerprint(data)) != expected:
        raise InputError(f"{path}: SHA-256 is {found[:12]}…, but {CONFIG} says {expected[:12]}….", WHOLE)
    if _header(data) != header:
        raise InputError(
            f"{path.with_name(CONFIG)}: names another network or preprocessing than the weights were saved with.",
            "Undo the change, or get a whole copy of the model folder.",
        )


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error for weights that cannot be read."""
    if isinstance(error, OSError) and error.errno:
        return InputError(f"{path}: cannot be read ({error.strerror}).", "Check its rights and the disk.")
    return InputError(f"{path}: damaged, cut short or not safetensors ({error}).", WHOLE)


def _header(data: bytes) -> str | None:
    """The `header` that `serialise` was given, or None. A file begins with 8 bytes of length, then that much JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        about = json.loads(data[8 : 8 + length])["__metadata__"][HEADER_KEY]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return about if isinstance(about, str) else None


def fingerprint(weights: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(weights).hexdigest()


def write(path: Path, *, weights: bytes, config: str, card: str, tokenizer: str | None = None) -> None:
    """Write the files beside their final paths, then rename them, config.json last.

    A reader between two renames finds a fingerprint that does not match, never a mixture of two models.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    contents = {WEIGHTS: weights, CARD: card.encode(), CONFIG: (config + "\n").encode()}
    if tokenizer is not None:
        contents = {TOKENIZER: tokenizer.encode(), **contents}
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    with ExitStack() as files:
        # The stack renames in reverse order, when all of them are written.
        beside = {name: files.enter_context(atomic_file(path / name)) for name in reversed(contents)}
        for name, content in contents.items():
            beside[name].write_bytes(content)
            sync(beside[name])
    sync(path)


def save(path: Path, config: ModelConfig, network: nn.Module, dim: int) -> None:
    """Write the model folder of a network whose vectors have `dim` numbers, in `config.precision`.

    Raises:
        InputError: as `write` and `serialise`.
    """
    weights = serialise(network.state_dict(), config.precision, config.of_vectors())
    mark = fingerprint(weights)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    tokenizer = getattr(network, "tokenizer", None)
    write(
        path,
        tokenizer=None if tokenizer is None else tokenizer.source,
        weights=weights,
        config=json.dumps({**config.model_dump(mode="json"), "fingerprint": mark}, indent=2, ensure_ascii=False),
        card=card(config, parameters, dim, mark),
    )


def card(config: ModelConfig, parameters: int, dim: int, fingerprint: str) -> str:
    """Render the model card: Markdown with the front matter of the Hub. `dim` is the length of the model's vectors."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = f"{config.dataset} {config.start}".lower().replace(" ", "-").replace("_", "-")
    return templates.get_template("card.md.j2").render(
        config=config,
        parameters=parameters,
        dim=dim,
        fingerprint=fingerprint,
        noncommercial="tiny-imagenet" in names,
        cars="cars196" in names,
        shown_names=config.class_names[:20],
        crop=_cropping(config),
    )


def _cropping(config: ModelConfig) -> str:
    """How an image becomes a square, as a clause."""
    crop = config.crop_mode
    if not isinstance(crop, ResizeCrop):
        whole = "the whole image is stretched to a square"
        return whole if crop == "squash" else "the shorter side is resized, then the center is cropped"
    sides = "both sides are" if crop.squash else "the shorter side is"
    return f"{sides} resized to {crop.resized(config.image_size)} ({crop.interpolation}), then the center is cropped"


# Weights


def read(path: Path, expected: str, header: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Args:
        path: of the file.
        expected: its SHA-256 according to config.json.
        header: network and preprocessing according to config.json.

    Raises:
        InputError: damaged, cut short, or not the file that config.json was written with.
    """
    import safetensors.torch

    data = read_bytes(path)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise damaged(path, error) from None
    check_weights(data, path, expected, header)
    return tensors


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy stored tensors into a network of the same names and shapes.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or dtype, or not finite; the first one is named.
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


def serialise(state: Mapping[str, Tensor], precision: Precision, header: str) -> bytes:
    """Convert a state dict to the bytes of a safetensors file: floating-point tensors as `precision`, others unchanged.

    The same numbers give the same bytes. (There is one metadata key only, since the format keeps several in no order.)

    Raises:
        InputError: a number that is not finite in that precision.
    """
    import safetensors.torch
    import torch

    dtype = torch.float16 if precision == "float16" else torch.float32
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
            if not tensor.isfinite().all():
                raise InputError(f"'{name}' holds numbers that are not finite as {dtype}.", "Save it as float32.")
        tensors[name] = tensor.contiguous()
    return safetensors.torch.save(tensors, {HEADER_KEY: header})


# The configuration


class TextSettings(Section):
    """How texts become the input of a text tower.

    Attributes:
        context_length: tokens of a text; shorter texts are padded with `pad_id`, longer ones cut off.
        pad_id: see `context_length`.
        clean: what is done to a text before: "whitespace" is made single spaces; "lower": and letters small;
            "canonicalize": and punctuation removed.
        blank_id: a token that is replaced by 0, or None.
        tokenizer: SHA-256 (hex) of tokenizer.json.
    """

    context_length: int = Field(ge=3, le=MAX_CONTEXT)
    pad_id: int = Field(0, ge=0)
    clean: Literal["whitespace", "lower", "canonicalize"] = "lower"
    blank_id: int | None = Field(None, ge=0)
    tokenizer: str


class ModelConfig(Section):
    """The network of a model, its preprocessing, and the meaning of its outputs: config.json.

    Attributes:
        name, options, head, unit_features: see `create_model`. With a head the outputs are embeddings, and the classes
            are those of the training, chosen by `protocol`.
        pooling: of a timm network without a head; see `TimmNetwork`.
        start: what the weights were trained on before, or "".
        image_size, crop_mode, mean, std: preprocessing; see `lookalike.image.decode` and `Normalize`.
        class_names, class_ids: in the order of the logits; none if the network has no classifier.
        dataset, remark: of the training; see `Catalog`.
        source, license: of weights that were trained elsewhere, or "".
        crop_boxes: whether the network was trained on images that were cropped to their boxes.
        temperature: divides the logits before the softmax. If the validation images do not determine it, it is 1, and
            `temperature_remark` is the reason.
        match_threshold: cosine of two vectors from which their images are called one class, at 1 % false matches among
            images like the validation images (or the test images of a protocol); None if it was not measured.
        unknown_threshold: a prediction of a smaller probability is called unknown, which happens to one in ten images
            of the known classes; None: never.
        val_fraction, split_seed: which images were not trained on, if the data name no val split; None: not recorded.
        text: of a pair of an image and a text tower; None: the model has no text tower. The `temperature` of a pair is
            for the cosines of an image and texts.
        precision: of the stored weights; in memory they are float32.
    """

    format: Literal[1] = 1
    name: str
    options: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    head: Head | None = None
    pooling: Literal["mean", "own"] = "mean"
    unit_features: bool = False
    protocol: str = ""
    start: str = ""
    crop_boxes: bool = False
    image_size: int = Field(ge=8, le=1024)
    crop_mode: CropMode = "center"
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    dataset: str = ""
    remark: str = ""
    source: str = ""
    license: str = ""
    temperature: Positive = 1.0
    temperature_remark: str = ""
    match_threshold: float | None = Field(None, ge=-1, le=1)
    unknown_threshold: Fraction | None = None
    val_fraction: Fraction | None = None
    split_seed: int | None = None
    text: TextSettings | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _every_class_has_an_id(self) -> ModelConfig:
        if len(self.class_ids) != len(self.class_names):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.class_ids)} class_ids")
        return self

    @model_validator(mode="after")
    def _only_other_libraries_have_no_classes(self) -> ModelConfig:
        if not self.class_names and self.name != OPEN_CLIP and not self.name.startswith(TIMM):
            raise ValueError("class_names must have at least one name")
        return self

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_logits(self) -> bool:
        """Whether the network predicts classes; without, it only turns images into vectors."""
        return self.head is None and bool(self.class_names)

    def is_unknown(self, probability: float) -> bool:
        """Whether a prediction with this probability of the most probable class is called unknown."""
        return self.unknown_threshold is not None and probability < self.unknown_threshold

    def classes_in(self, ids: Sequence[str], names: Sequence[str]) -> list[str]:
        """The names of the given classes, by id and name, that the network was trained on."""
        known = set(zip(self.class_ids, self.class_names, strict=True))
        return [name for mark, name in zip(ids, names, strict=True) if (mark, name) in known]

    def of_vectors(self) -> str:
        """JSON of the fields that vectors depend on. Stored with the weights, it is part of the fingerprint."""
        fields = {"name", "options", "image_size", "mean", "std"}
        if self.head:
            fields.add("head")
        if self.crop_mode != "center":  # older folders do not have the field
            fields.add("crop_mode")
        if self.pooling != "mean":  # as above
            fields.add("pooling")
        if self.text:  # as above
            fields.add("text")
        without = {"head": {"projection"}} if self.head and not self.head.projection else None  # as above
        return self.model_dump_json(include=fields, exclude=without)
