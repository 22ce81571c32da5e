"""What a model folder says of its model; all that can be known without loading the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lookalike.image import CropMode
from lookalike.models import folder
from lookalike.recipe import Fraction, Head, Positive, Scalar, Section

Precision = Literal["float32", "float16"]


class ModelConfig(Section):
    """What a network is, how pictures are put before it, and what its outputs mean.

    With a `head` the outputs are embeddings, and the classes those that they were trained on, by `protocol`.
    `start` says what the weights were trained on before, if anything. `precision` is how the weights are stored; in
    memory they are float32. `temperature` divides the logits before the softmax; where the validation
    images could not tell it, it is 1, and `temperature_remark` says why. `match_threshold` is the cosine of two
    vectors from which on their images may be called one class, at 1 % false matches among images like the validation
    images (or a protocol's test images), and more among others; None where it was not measured.
    `unknown_threshold` is the probability of the likeliest class below which the answer is better "unknown": one image
    in ten of the classes it knows lies below it; None: it always has an answer. Of `dataset` and its `remark`, see
    `Catalog`. `crop_boxes` says whether it saw images cut to their boxes;
    `val_fraction` and `split_seed` which it was not trained on, where the data name no val split; None in folders that
    do not know.
    """

    format: Literal[1] = 1
    name: str
    options: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    head: Head | None = None
    protocol: str = ""
    start: str = ""
    crop_boxes: bool = False
    image_size: int = Field(ge=8, le=1024)
    crop_mode: CropMode = "center"
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    class_names: tuple[str, ...] = Field(min_length=1)
    class_ids: tuple[str, ...]
    dataset: str = ""
    remark: str = ""
    temperature: Positive = 1.0
    temperature_remark: str = ""
    match_threshold: float | None = Field(None, ge=-1, le=1)
    unknown_threshold: Fraction | None = None
    val_fraction: Fraction | None = None
    split_seed: int | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _every_class_has_an_id(self) -> ModelConfig:
        if len(self.class_ids) != len(self.class_names):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.class_ids)} class_ids")
        return self

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def is_unknown(self, probability: float) -> bool:
        """Whether a picture whose likeliest class has this probability is better called unknown."""
        return self.unknown_threshold is not None and probability < self.unknown_threshold

    def classes_in(self, ids: Sequence[str], names: Sequence[str]) -> list[str]:
        """Names of those classes, given by id and name, that the network was trained on."""
        known = set(zip(self.class_ids, self.class_names, strict=True))
        return [name for mark, name in zip(ids, names, strict=True) if (mark, name) in known]

    def of_vectors(self) -> str:
        """JSON of the fields that an embedding depends on; stored beside the weights, and so in their fingerprint."""
        fields = {"name", "options", "image_size", "mean", "std"}
        if self.head:
            fields.add("head")
        if self.crop_mode != "center":  # folders from before there was a choice say nothing of it
            fields.add("crop_mode")
        without = {"head": {"projection"}} if self.head and not self.head.projection else None  # likewise
        return self.model_dump_json(include=fields, exclude=without)


def describe(name: str | Path) -> tuple[ModelConfig, str]:
    """What the model in a folder, on the Hub or in the package is, and its fingerprint; the weights are checked by it.

    Raises:
        InputError: as `Pretrained.from_pretrained`, as far as it can be seen without loading the network.
    """
    config_path, weights_path = folder.find(name)
    config, fingerprint = folder.read_config(ModelConfig, config_path)
    folder.check_weights(folder.read_bytes(weights_path), weights_path, fingerprint, config.of_vectors())
    return config, fingerprint
