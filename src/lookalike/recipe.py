"""What a run is: a typed description of data, network and training, read from YAML and `key=value` overrides.

A recipe is found by name among the ones shipped in `lookalike/reproduce/recipes` (`tiny_imagenet/30m/resnet18`), or by
path. Unknown keys are refused with the nearest valid one; the resolved recipe in a run folder reads back equal.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lookalike.errors import InputError, nearest

SHIPPED = Path(__file__).parent / "reproduce" / "recipes"
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Scalar = str | int | float | bool | None


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no change once read, no infinities.

    A key without a value stands for nothing: it takes away what may be absent, such as `model.init=`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        absent = {key for key, value in tree.items() if value is None and cls._may_be_absent(key)}
        return {key: value for key, value in tree.items() if key not in absent}

    @classmethod
    def _may_be_absent(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and not field.is_required() and field.default in ("", (), {}, None)


SectionT = TypeVar("SectionT", bound=Section)


class Augment(Section):
    """Augmentation of whole batches; every image draws its own numbers. All of it is off when `crop` is "none"
    and the rest is zero, which is what evaluation uses.

    `crop="pad"` pads each side by `pad` pixels of a 64-pixel image (scaled with the resolution), reflected, and crops
    back; `"resized"` takes a random area (a fraction of the image in `scale`) and aspect `ratio`, resized back.
    """

    crop: Literal["none", "pad", "resized"] = "pad"
    pad: int = Field(4, ge=0, le=32)
    scale: tuple[Fraction, Fraction] = (0.35, 1.0)
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    flip: Fraction = 0.5
    cutout: Fraction = 0.0  # side of the erased square over the side of the image
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Fraction = 0.0  # of half a turn: 1 lets every colour become every other
    mixup: float = Field(0.0, ge=0.0)  # alpha of the beta distribution; 0 is off
    cutmix: float = Field(0.0, ge=0.0)
    mix_probability: Fraction = 1.0  # share of the images that are mixed at all

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError("needs two numbers above zero, the smaller one first")
        return pair


class Sampler(Section):
    """Batches of `classes` classes with `images` images each (P x K), as losses on pairs need; 0 and 0: shuffled."""

    classes: int = Field(0, ge=0)
    images: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _makes_pairs(self) -> Sampler:
        if (self.classes, self.images) != (0, 0) and (self.classes < 2 or self.images < 2):
            raise ValueError(f"classes={self.classes}, images={self.images} makes no pairs: both must be at least 2")
        return self


class Data(Section):
    """Where the images come from and how they reach the network. With a `protocol`, the network is trained on some
    classes and tested by retrieval on others (`lookalike.evaluation.protocols`); without, on the splits of the source.
    """

    source: str = "builtin"  # "builtin", "tiny-imagenet", or a folder, zip, CSV or Parquet file
    image_size: int = Field(64, ge=8, le=1024)  # pixels of the square images in the pack
    val_fraction: Fraction = 0.1  # taken from training, stratified and seeded, where the source names no val split
    split_seed: int = 0
    protocol: str = ""  # such as "cars196-zero-shot"
    crop_boxes: bool = False  # cut images to their boxes, where the source has them
    crop_mode: Literal["center", "squash"] = "center"  # to a square: cut the sides off, or squash the whole image
    sampler: Sampler = Sampler()
    skip_undecodable: bool = False  # leave images out that cannot be decoded (counted and named) instead of stopping
    mean: tuple[float, float, float] = (0.4802, 0.4481, 0.3975)  # of RGB in 0..1 over Tiny ImageNet's training images
    std: tuple[Positive, Positive, Positive] = (0.2770, 0.2691, 0.2821)
    augment: Augment = Augment()


class Head(Section):
    """An embedding in the place of the classifier: pooling of the last feature map, then a linear layer or an MLP with
    one hidden layer, to `dim` numbers of unit length.

    With `projection` the layers only serve the loss: the trained network's vectors are what was pooled, of unit length,
    one number for each channel of the feature map. To classes that were not trained on these are often the better ones
    (Chen et al., 2020, arXiv:2002.05709, section 4.2).
    """

    dim: int = Field(512, ge=2)
    pooling: Literal["avg", "max", "both", "gem"] = "avg"
    kind: Literal["linear", "mlp"] = "linear"
    hidden: int = Field(1024, ge=1)  # of an MLP
    projection: bool = False


class Model(Section):
    """A network by name; `options` are the keyword arguments of its constructor (`lookalike models` lists them)."""

    name: str = "resnet18"
    options: dict[str, Scalar | list[Scalar]] = {}
    init: str = ""  # a model folder or Hub id whose weights, but for the head, are the start; empty: random ones
    head: Head | None = None  # None: a classifier


class Loss(Section):
    """Cross entropy for a classifier; for an embedding a loss on pairs or proxies, such as `multi_similarity`,
    `proxy_anchor`, or `pml/NAME` for any of pytorch-metric-learning. `options` are its keyword arguments.
    """

    name: str = "cross_entropy"
    options: dict[str, Scalar] = {}
    miner: str = ""  # `pml/NAME`, for a loss of that library
    miner_options: dict[str, Scalar] = {}
    memory: int = Field(0, ge=0)  # embeddings of past batches to compare with (cross-batch memory); 0 is off
    memory_start: int = Field(0, ge=0)  # batches before they are


class Optimizer(Section):
    """SGD with Nesterov momentum or AdamW. Weight decay is not applied to norms and biases unless `decay_all`."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.25  # the peak of the schedule, for the batch size of the recipe
    momentum: Fraction = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0.0)
    decay_all: bool = False
    clip_norm: float = Field(0.0, ge=0.0)  # 0 is off
    head_lr_scale: Positive = 1.0  # rate of the head and of the loss's own weights, over that of the rest


class Schedule(Section):
    """Learning rate over the run: linear warm-up, then `one_cycle` (linear to zero) or `cosine`, per step."""

    name: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Fraction = 0.2  # share of the steps spent warming up
    start: Fraction = 0.05  # learning rate of the first step, over the peak
    end: Fraction = 0.0  # learning rate of the last step, over the peak


class Training(Section):
    """The loop. `resolution` is a list of (share of the run, pixels): `[[0, 32], [0.5, 48], [0.75, 64]]` trains the
    first half on 32 pixels; empty means the pack's own size throughout.
    """

    epochs: int = Field(8, ge=1)
    batch_size: int = Field(256, ge=2)
    grad_accum_steps: int = Field(1, ge=1)  # batches of `batch_size // grad_accum_steps` images per optimiser step
    resolution: tuple[tuple[Fraction, int], ...] = ()
    label_smoothing: Fraction = 0.1
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # decay per step of the averaged weights; 0 is off
    patience: int = Field(0, ge=0)  # early stopping: evaluations without a better top-1; 0 is off
    evaluate_every: int = Field(1, ge=1)  # epochs
    checkpoint_seconds: float = Field(120.0, ge=0.0)  # 0 writes one after every step
    precision: Literal["bf16", "float32"] = "bf16"
    channels_last: bool = True
    head_warmup: Fraction = 0.0  # share of the run in which only the head and the loss's own weights learn
    freeze_bn: bool = False  # batch norms keep the statistics they start with
    compile: bool = False
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    seed: int = 0

    @field_validator("resolution")
    @classmethod
    def _ascending(cls, stages: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        if stages and stages[0][0] != 0.0:
            raise ValueError("the first stage must start at 0")
        if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(stages)):
            raise ValueError("stages must start one after the other")
        if any(size < 8 for _, size in stages):
            raise ValueError("a stage needs at least 8 pixels")
        return stages

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(f"grad_accum_steps={self.grad_accum_steps} does not divide batch_size={self.batch_size}")
        return self


class Evaluation(Section):
    """How the network is measured after training. `flip` averages with the mirrored image and is named in results."""

    batch_size: int = Field(500, ge=1)
    flip: bool = False


class Recipe(Section):
    """A whole run, resolved: everything needed to do it again."""

    name: str = "run"
    about: str = ""
    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    def does_as(self, other: Recipe) -> bool:
        """Whether a run by either is the same: they may differ in what they say about themselves."""
        return self == other.model_copy(update={"about": self.about})

    def placed_as(self, other: Recipe) -> Recipe:
        """This recipe with the places of another: where the data lie, and the start where both have one."""
        data = self.data.model_copy(update={"source": other.data.source})
        both = self.model.init and other.model.init
        model = self.model.model_copy(update={"init": other.model.init}) if both else self.model
        return self.model_copy(update={"data": data, "model": model})

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        wants_head = self.loss.name != "cross_entropy"
        if wants_head and self.model.head is None:
            raise ValueError(f"loss.name={self.loss.name} needs an embedding, such as model.head.dim=512")
        if self.model.head is not None and not wants_head:
            raise ValueError("model.head needs a loss for embeddings, such as loss.name=multi_similarity")
        if wants_head and not self.data.protocol:
            raise ValueError(f"loss.name={self.loss.name} needs a data.protocol, such as half-zero-shot")
        if wants_head and self.training.grad_accum_steps > 1:
            raise ValueError(
                f"training.grad_accum_steps must be 1: loss.name={self.loss.name} compares the whole batch"
            )
        if wants_head and (self.data.augment.mixup or self.data.augment.cutmix):
            raise ValueError(f"loss.name={self.loss.name} needs whole labels: no data.augment.mixup or cutmix")
        if not wants_head and self.loss != Loss():
            raise ValueError("loss.name=cross_entropy has no options, miner or memory: set loss={name: cross_entropy}")
        if self.data.protocol and self.training.patience:
            raise ValueError("training.patience must be 0 with a data.protocol: it would choose by the test classes")
        sampler = self.data.sampler
        if sampler.classes and sampler.classes * sampler.images != self.training.batch_size:
            raise ValueError(
                f"data.sampler makes batches of {sampler.classes} x {sampler.images} images, "
                f"but training.batch_size is {self.training.batch_size}"
            )
        return self

    def to_yaml(self) -> str:
        """YAML that `Recipe.from_yaml` reads back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from YAML text, then apply `key=value` overrides such as `training.epochs=3`.

        Raises:
            InputError: not YAML, an unknown key (the nearest valid one is named) or a value that does not fit.
        """
        tree = parse_yaml(text, where)
        for override in overrides:
            _apply(tree, override)
        return validate(cls, tree, where)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping as a dict; an empty text is an empty mapping.

    Raises:
        InputError: not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML ({' '.join(str(error).split())}).", "Mend that line.") from None
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected 'key: value' lines, found a {type(tree).__name__}.")
    return tree


def validate(cls: type[SectionT], tree: dict[str, Any], where: str) -> SectionT:
    """Validate `tree` against a section class; the first fault is named with its key and what would be right.

    Raises:
        InputError: an unknown key or a bad value.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise _explain(cls, error, where) from None


def shipped() -> list[str]:
    """Names of the recipes in the package, such as "tiny_imagenet/30m/resnet18", sorted."""
    return sorted(p.relative_to(SHIPPED).with_suffix("").as_posix() for p in SHIPPED.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe: a path ending in .yaml, or the name of a shipped one.

    Raises:
        InputError: there is none (the nearest shipped name is suggested).
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise InputError(f"{path}: no such recipe file.", "'lookalike recipes' lists the shipped ones.")
    path = SHIPPED / f"{name}.yaml"
    if path.is_file():
        return path
    raise InputError(f"no recipe named '{name}'.{nearest(name, shipped())}", "'lookalike recipes' lists them.")


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by shipped name or path and apply `key=value` overrides.

    Raises:
        InputError: no such recipe, an unknown key or a bad value.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", "Check its rights and the disk.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error}).", "Save it as YAML in UTF-8.") from None
    return Recipe.from_yaml(text, str(name), overrides)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"'{override}' is not an override.", "Write key=value, for example training.epochs=3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"'{override}': '{text}' is not a value.", "Quote it as YAML would.") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string; people mean the number
        with contextlib.suppress(ValueError):
            value = float(value)
    *parents, leaf = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(f"'{override}': '{parent}' is a value, not a section.")
    tree[leaf] = value


def _explain(cls: type[Section], error: ValidationError, where: str) -> InputError:
    faults = error.errors()
    # a misspelt key first: it may be why another is missing
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _fields(cls, location[:-1])
        inside = f" in '{'.'.join(location[:-1])}'" if location[:-1] else ""
        return InputError(
            f"{where}: unknown key '{key}'.{nearest(location[-1], known)}", f"Keys{inside}: {', '.join(known)}."
        )
    message = fault["msg"].removeprefix("Value error, ")
    value = "nothing" if fault["input"] is None else repr(fault["input"])
    given = f" (given: {value})" if not isinstance(fault["input"], dict) else ""
    subject = f"'{key}' " if key else ""  # a fault of the whole names its keys itself
    return InputError(f"{where}: {subject}{message[0].lower()}{message[1:]}{given}.", "Mend that value.")


def _fields(cls: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        field = cls.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return list(cls.model_fields)
