"""What travels between the service and who asks it: the answers, as JSON, with examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lookalike.gallery.store.base import Value


class StrictResponse(BaseModel):
    """An answer: only the fields that are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limit(StrictResponse):
    """A limit that was passed: its name, as `GET /v1/about` has it, and its value."""

    name: str = Field(examples=["max_body_bytes"])
    value: int | float = Field(examples=[20 * 2**20])


class ErrorDetail(StrictResponse):
    """What was wrong and what to do; the limit, where one was passed."""

    message: str = Field(examples=["image 1: not an image in a format that can be read."])
    remedy: str = Field("", examples=["Use JPEG, PNG, WebP, GIF, BMP or TIFF."])
    limit: Limit | None = None


class ErrorResponse(StrictResponse):
    """The body of every answer that is an error."""

    error: ErrorDetail


class PredictedClass(StrictResponse):
    """A class and its calibrated probability, 0 to 1."""

    label: str = Field(examples=["tabby cat"])
    class_id: str = Field(examples=["n02123045"])
    probability: float = Field(examples=[0.83])


class ImagePrediction(StrictResponse):
    """The prediction for one image: its most probable classes, in descending order of probability.

    `unknown` is true if the highest probability is below the model's threshold, `unknown_threshold` of `/v1/about`.
    """

    unknown: bool
    classes: list[PredictedClass]


class PredictResponse(StrictResponse):
    """One prediction for each image, in the order of the request."""

    model: str = Field(examples=["ResNet-18 (ONNX Runtime, 1 thread)"])
    took_ms: float = Field(examples=[6.2])
    predictions: list[ImagePrediction]


class SearchHit(StrictResponse):
    """A row that looks alike: the cosine of its vector and the query's, -1..1. `name`: where names are shown."""

    id: int = Field(examples=[12])
    score: float = Field(examples=[0.91])
    label: str | None = Field(examples=["cat"])
    name: str | None = None
    metadata: dict[str, Value] = Field(examples=[{"year": 2012}])
    thumbnail: str = Field(examples=["/v1/items/12/thumbnail"])


class SearchResponse(StrictResponse):
    """The rows most alike, the likest first. `exact`: all rows were compared. `threshold`: the least score, or null.
    `same`: rows of the very file that was asked with, byte for byte, k of them at most; they are not among the hits.
    """

    took_ms: float = Field(examples=[3.1])
    exact: bool
    threshold: float | None = Field(examples=[0.71])
    hits: list[SearchHit]
    same: list[SearchHit]


class EmbedResponse(StrictResponse):
    """A vector of length 1 for each image. `model` is its fingerprint: vectors of different models have no cosine."""

    model: str = Field(examples=["9f2c…"])
    dim: int = Field(examples=[512])
    vectors: list[list[float]] = Field(examples=[[[0.01, -0.2, 0.09]]])


class AddedItem(StrictResponse):
    """A row of the gallery. `added`: it is new; else the same picture was there."""

    id: int = Field(examples=[13])
    added: bool
    label: str | None = Field(examples=["cat"])


class ItemsResponse(StrictResponse):
    """One row for each image, in their order; on the disk when this is answered."""

    items: list[AddedItem]


class ItemResponse(StrictResponse):
    """A row of the gallery: `bytes` of its file, and the SHA-256 of that in hex."""

    id: int = Field(examples=[12])
    label: str | None = Field(examples=["cat"])
    name: str | None = None
    metadata: dict[str, Value] = Field(examples=[{"year": 2012}])
    bytes: int = Field(examples=[48211])
    digest: str = Field(examples=["6c1e…"])
    thumbnail: str = Field(examples=["/v1/items/12/thumbnail"])


class ModelResponse(StrictResponse):
    """The model: `unknown_threshold` is the probability below which a picture is called unknown; null: never."""

    name: str = Field(examples=["ResNet-18 (ONNX Runtime, 1 thread)"])
    fingerprint: str
    classes: int = Field(examples=[200])
    size: int = Field(examples=[64])
    dim: int = Field(examples=[512])
    unknown_threshold: float | None


class Counted(StrictResponse):
    """A label of the gallery and how many rows have it."""

    label: str = Field(examples=["cat"])
    count: int = Field(examples=[120])


class GalleryFacts(StrictResponse):
    """The gallery: its rows and its most frequent labels, at most 1,000.

    `threshold` was calibrated on its own labels, `calibrated_on` says on how many; null where it was not.
    `model_threshold` is the model's: true only for images like those that `model_calibrated_on` names.
    """

    rows: int
    threshold: float | None
    calibrated_on: str | None = Field(examples=["400 labelled rows of this gallery, 2 labels"])
    model_threshold: float | None
    model_calibrated_on: str = Field(examples=["images of tiny-imagenet"])
    labels: list[Counted]


class KeysInfo(StrictResponse):
    """Which keys are asked for: `read`: whether one is; `write`: "key", "off" (no one may write) or "open"."""

    read: bool
    write: Literal["off", "key", "open"]


class InfoResponse(StrictResponse):
    """What this service is, has and allows."""

    name: str = Field(examples=["lookalike"])
    version: str
    model: ModelResponse
    gallery: GalleryFacts | None
    limits: dict[str, int | float] = Field(examples=[{"max_body_bytes": 20 * 2**20, "max_images": 16}])
    keys: KeysInfo


class StateResponse(StrictResponse):
    """Whether it lives, or is ready; why not, where it is not."""

    status: Literal["live", "ready", "not ready"]
    reasons: list[str] = Field(default_factory=list, examples=[[]])


def fault(message: str, remedy: str = "", limit: str | None = None, value: float | None = None) -> dict[str, Any]:
    """The body of an error as a tree of plain values.

    >>> fault("2 images are too many.", "Send fewer.", "max_images", 1)["error"]["limit"]
    {'name': 'max_images', 'value': 1}
    """
    tree: dict[str, Any] = {"message": message, "remedy": remedy}
    if limit is not None:
        tree["limit"] = {"name": limit, "value": value}
    return {"error": tree}
