"""Recipes: the typed description of a run (data, network, training), read from YAML with `key=value` overrides.

A recipe is the path of a .yaml file, or a name such as `tiny_imagenet/30m/resnet18` in `lookalike/reproduce/recipes`.
Unknown keys are errors.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lookalike.errors import InputError, nearest
from lookalike.image import ResizeCrop

SHIPPED = Path(__file__).parent / "reproduce" / "recipes"
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
UNION_BRANCHES = ("literal[", "ResizeCrop")  # in the location of an error: which of several types a value has not
Scalar = str | int | float | bool | None


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys or infinite numbers.

    A key without a value, such as `model.init=`, sets an optional value back to its empty default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        absent = {key for key, value in tree.items() if value is None and cls._is_optional(key)}
        return {key: value for key, value in tree.items() if key not in absent}

    @classmethod
    def _is_optional(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and not field.is_required() and field.default in ("", (), {}, None)


SectionT = TypeVar("SectionT", bound=Section)


class Augment(Section):
    """Augmentation of training batches, drawn for each image. With `crop="none"` and all else zero there is none.

    `crop="pad"` pads each side by reflection and crops back to the size at a random place; `"resized"` crops a random
    area (fraction of the image in `scale`) and aspect `ratio`, and resizes it.
    """

    crop: Literal["none", "pad", "resized"] = "pad"
    pad: int = Field(4, ge=0, le=32)  # pixels of a 64-pixel image; scaled with the resolution
    scale: tuple[Fraction, Fraction] = (0.35, 1.0)
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    flip: Fraction = 0.5
    cutout: Fraction = 0.0  # side of the erased square, as a fraction of the image's side
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Fraction = 0.0  # fraction of half a turn of the colour circle: 1 gives any hue
    mixup: float = Field(0.0, ge=0.0)  # alpha of the beta distribution; 0: off
    cutmix: float = Field(0.0, ge=0.0)
    mix_probability: Fraction = 1.0  # fraction of the images that mixup and cutmix change

    @field_validator("scale", "ratio")
    @classmethod
    def _check_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError("must be two numbers above zero, the smaller one first")
        return pair


class Sampler(Section):
    """Batches of `classes` classes with `images` images each (P x K), for losses on pairs; 0 and 0: shuffled."""

    classes: int = Field(0, ge=0)
    images: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check_pairs(self) -> Sampler:
        if (self.classes, self.images) != (0, 0) and (self.classes < 2 or self.images < 2):
            raise ValueError(f"classes={self.classes} and images={self.images} give no pairs: both must be at least 2")
        return self


class Data(Section):
    """Source and preprocessing of the images.

    With a `protocol`, the network is trained on some classes and tested by retrieval on the others
    (`lookalike.evaluation.protocols`); without, it is trained and tested on the splits of the source.
    """

    source: str = "builtin"  # "builtin", name of a data set, or a folder, zip, CSV or Parquet file
    image_size: int = Field(64, ge=8, le=1024)  # side of the square images, in pixels
    val_fraction: Fraction = 0.1  # of the training images, by class, if the source has no val split
    split_seed: int = 0
    protocol: str = ""  # such as "cars196-zero-shot"
    crop_boxes: bool = False  # crop images to their bounding boxes, if the source has them
    # to a square: cut the longer sides, squash the image, or resize and cut: {share: 0.875, interpolation: bicubic}
    crop_mode: Literal["center", "squash"] | ResizeCrop = "center"
    sampler: Sampler = Sampler()
    skip_undecodable: bool = False  # skip images that cannot be decoded instead of stopping
    mean: tuple[float, float, float] = (0.4802, 0.4481, 0.3975)  # RGB in 0..1; of Tiny ImageNet's training images
    std: tuple[Positive, Positive, Positive] = (0.2770, 0.2691, 0.2821)
    augment: Augment = Augment()


class Head(Section):
    """An embedding in place of the classifier: pooling, then a linear layer or an MLP, to `dim` values of unit length.

    With `projection` the layers after the pooling are only used by the loss: the trained model's vectors are the pooled
    features, of unit length. For classes that were not trained on, these are often better (Chen et al., 2020,
    arXiv:2002.05709, section 4.2).
    """

    dim: int = Field(512, ge=2)
    pooling: Literal["avg", "max", "both", "gem"] = "avg"
    kind: Literal["linear", "mlp"] = "linear"
    hidden: int = Field(1024, ge=1)  # width of the MLP's hidden layer
    projection: bool = False


class Model(Section):
    """A network by name (`lookalike models` lists them); `options` are keyword arguments of its constructor."""

    name: str = "resnet18"
    options: dict[str, Scalar | list[Scalar]] = {}
    init: str = ""  # model (see `lookalike.load`) to take the initial weights from, without its head; empty: random
    head: Head | None = None  # None: a classifier
    unit_features: bool = False  # the last layer of the classifier takes features that are scaled to length 1


class Loss(Section):
    """`cross_entropy` for a classifier; for an embedding `multi_similarity`, `proxy_anchor`, or `pml/NAME` for one of
    pytorch-metric-learning. `options` are its keyword arguments.
    """

    name: str = "cross_entropy"
    options: dict[str, Scalar] = {}
    miner: str = ""  # `pml/NAME`, for `pml/` losses
    miner_options: dict[str, Scalar] = {}
    memory: int = Field(0, ge=0)  # embeddings of past batches that take part (cross-batch memory); 0: off
    memory_start: int = Field(0, ge=0)  # batches before the memory is used


class Optimizer(Section):
    """SGD with Nesterov momentum, or AdamW. Norms and biases have no weight decay unless `decay_all`."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.25  # peak of the schedule, for the recipe's batch size
    momentum: Fraction = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0.0)
    decay_all: bool = False
    clip_norm: float = Field(0.0, ge=0.0)  # 0: off
    head_lr_scale: Positive = 1.0  # factor on the learning rate of the head and the loss's parameters


class Schedule(Section):
    """Learning rate by step: linear warm-up, then `one_cycle` (linear decay), `cosine` or `constant`."""

    name: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Fraction = 0.2  # fraction of the steps
    start: Fraction = 0.05  # learning rate of the first step, as a fraction of the peak
    end: Fraction = 0.0  # learning rate of the last step, as a fraction of the peak


class Training(Section):
    """The training loop.

    `resolution` is a list of (fraction of the run, pixels): `[[0, 32], [0.5, 48], [0.75, 64]]` trains the first half on
    32 pixels; empty: `data.image_size` throughout.
    """

    epochs: int = Field(8, ge=1)
    batch_size: int = Field(256, ge=2)
    grad_accum_steps: int = Field(1, ge=1)  # batches of `batch_size // grad_accum_steps` images per optimiser step
    resolution: tuple[tuple[Fraction, int], ...] = ()
    label_smoothing: Fraction = 0.1
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of the averaged weights, per step; 0: off
    patience: int = Field(0, ge=0)  # early stopping: evaluations without a better score; 0: off
    evaluate_every: int = Field(1, ge=1)  # epochs between evaluations
    checkpoint_seconds: float = Field(120.0, ge=0.0)  # between checkpoints; 0: after every step
    precision: Literal["auto", "bf16", "float32"] = "auto"  # auto: the faster one, measured when training starts
    channels_last: bool = True
    adapt: bool = False  # take keys that the recipe leaves open from `model.init` and the number of images
    fit_head: bool = False  # start with a classifier that is fitted to the features of the initial network
    head_warmup: Fraction = 0.0  # fraction of the run in which only the head and the loss's parameters learn
    freeze_bn: bool = False  # batch norms keep their initial statistics
    compile: bool = False
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    seed: int = 0

    @field_validator("resolution")
    @classmethod
    def _check_resolution(cls, stages: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        if stages and stages[0][0] != 0.0:
            raise ValueError("must start at 0")
        if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(stages)):
            raise ValueError("must have ascending starts")
        if any(size < 8 for _, size in stages):
            raise ValueError("must have at least 8 pixels")
        return stages

    @model_validator(mode="after")
    def _check_division(self) -> Training:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(f"grad_accum_steps={self.grad_accum_steps} does not divide batch_size={self.batch_size}")
        return self


class Evaluation(Section):
    """Evaluation after training. `flip` averages with the mirrored image; results say so."""

    batch_size: int = Field(500, ge=1)
    flip: bool = False


class Fit(Section):
    """A classifier on the frozen features of `model.init`: what `lookalike fit` makes, without training a network."""

    classifier: Literal["auto", "logistic", "prototypes"] = "auto"  # auto: prototypes for classes of under five images
    mirror: bool = True  # fit to the mirror images, too
    seed: int = Field(0, ge=0, lt=2**32)  # of the cross-validation


class Recipe(Section):
    """The complete description of a run. With `fit`, loss, optimizer, schedule and training mean nothing."""

    name: str = "run"
    about: str = ""
    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    fit: Fit | None = None  # None: train

    def same_run_as(self, other: Recipe) -> bool:
        """Whether both describe the same run: only `about` may differ."""
        return self == other.model_copy(update={"about": self.about})

    def with_paths_of(self, other: Recipe) -> Recipe:
        """This recipe with the paths of another: of the data, and of the initial model if both have one."""
        data = self.data.model_copy(update={"source": other.data.source})
        both = self.model.init and other.model.init
        model = self.model.model_copy(update={"init": other.model.init}) if both else self.model
        return self.model_copy(update={"data": data, "model": model})

    @model_validator(mode="after")
    def _check_combination(self) -> Recipe:
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
            raise ValueError(f"loss.name={self.loss.name} needs plain labels: no data.augment.mixup or cutmix")
        if not wants_head and self.loss != Loss():
            raise ValueError("loss.name=cross_entropy has no options, miner or memory: set loss={name: cross_entropy}")
        if self.training.fit_head and self.data.protocol:
            raise ValueError("training.fit_head needs a classifier that is trained on all classes: no data.protocol")
        if self.data.protocol and self.training.patience:
            raise ValueError("training.patience must be 0 with a data.protocol: it would select by the test classes")
        sampler = self.data.sampler
        if sampler.classes and sampler.classes * sampler.images != self.training.batch_size:
            raise ValueError(
                f"data.sampler makes batches of {sampler.classes} x {sampler.images} images, "
                f"but training.batch_size is {self.training.batch_size}"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML, for `Recipe.from_yaml`."""
        unused = {"loss", "optimizer", "schedule", "training", "evaluation"} if self.fit else {"fit"}
        return yaml.safe_dump(self.model_dump(mode="json", exclude=unused), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from YAML text, then apply `key=value` overrides such as `training.epochs=3`.

        Raises:
            InputError: not YAML, an unknown key, or a bad value.
        """
        tree = parse_yaml(text, where)
        for override in overrides:
            key, value = _parse_override(override)
            _set(tree, key, value)
        return validate(cls, tree, where)

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with other values, by keys such as "training.epochs"; a section's value replaces all of it.

        Raises:
            InputError: an unknown key or a bad value.
        """
        tree = self.model_dump(exclude_unset=True)  # so that `adapt` sees what was left open
        for key, value in values.items():
            _set(tree, key, value)
        return validate(type(self), tree, self.name)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping; an empty text is an empty one.

    Raises:
        InputError: not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML ({' '.join(str(error).split())}).", "Correct that line.") from None
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected 'key: value' lines, found a {type(tree).__name__}.")
    return tree


def validate(cls: type[SectionT], tree: dict[str, Any], where: str) -> SectionT:
    """Make a section from a tree of plain values.

    Raises:
        InputError: an unknown key or a bad value; it names the key, and the nearest known one.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise _explain(cls, error, where) from None


def shipped() -> list[str]:
    """Sorted names of the shipped recipes, such as "tiny_imagenet/30m/resnet18"."""
    return sorted(p.relative_to(SHIPPED).with_suffix("").as_posix() for p in SHIPPED.rglob("*.yaml"))


def find(name: str) -> Path:
    """Path of a recipe, given as a path that ends in .yaml or as the name of a shipped one.

    Raises:
        InputError: there is no such recipe.
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
        raise InputError(f"{path}: cannot be read ({error.strerror}).", "Check its permissions and the disk.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error}).", "Save it as YAML in UTF-8.") from None
    return Recipe.from_yaml(text, str(name), overrides)


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"'{override}' is not an override.", "Write key=value, for example training.epochs=3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"'{override}': '{text}' is not a value.", "Quote it as in YAML.") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    return key, value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(
                f"'{key}': '{parent}' is a value, not a section.", "Write the keys of a value without a dot."
            )
    tree[leaf] = value


def _explain(cls: type[Section], error: ValidationError, where: str) -> InputError:
    problems = error.errors()
    # report a misspelt key first: it may be the reason for the others
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"] if not str(part).startswith(UNION_BRANCHES)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields(cls, location[:-1])
        inside = f" in '{'.'.join(location[:-1])}'" if location[:-1] else ""
        return InputError(
            f"{where}: unknown key '{key}'.{nearest(location[-1], known)}", f"Keys{inside}: {', '.join(known)}."
        )
    message = problem["msg"].removeprefix("Value error, ")
    value = "nothing" if problem["input"] is None else repr(problem["input"])
    given = f" (given: {value})" if not isinstance(problem["input"], dict) else ""
    subject = f"'{key}' " if key else ""  # a message about several keys names them itself
    return InputError(f"{where}: {subject}{message[0].lower()}{message[1:]}{given}.", "Correct that value.")


def _fields(cls: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        field = cls.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return list(cls.model_fields)
