"""The JSON that the service returns, with examples for the API description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lookalike.gallery.store.base import Value


class StrictResponse(BaseModel):
    """Base of all responses: exactly the declared fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limit(StrictResponse):
    """A limit that was exceeded: its name in `GET /v1/about`, and its value."""

    name: str = Field(examples=["max_body_bytes"])
    value: int | float = Field(examples=[20 * 2**20])


class ErrorDetail(StrictResponse):
    """What was wrong, what to do about it, and the limit, if one was exceeded."""

    message: str = Field(examples=["image 1: not an image in a format that can be read."])
    remedy: str = Field("", examples=["Use JPEG, PNG, WebP, GIF, BMP or TIFF."])
    limit: Limit | None = None


class ErrorResponse(StrictResponse):
    """The body of every error response."""

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

    model: str = Field(examples=["resnet18, tiny-imagenet (ONNX Runtime)"])
    took_ms: float = Field(examples=[6.2])
    predictions: list[ImagePrediction]


class SearchHit(StrictResponse):
    """An item of the gallery and its score: the cosine similarity of its vector and the query's, -1 to 1.

    `name` is the name of the item's file; null if the service does not show names.
    """

    id: int = Field(examples=[12])
    score: float = Field(examples=[0.91])
    label: str | None = Field(examples=["cat"])
    name: str | None = Field(None, examples=["cat.jpg"])
    metadata: dict[str, Value] = Field(examples=[{"year": 2012}])
    thumbnail: str = Field(examples=["/v1/items/12/thumbnail"])


class SearchResponse(StrictResponse):
    """The nearest items, in descending order of score.

    `exact` is true if the query was compared with every item. `threshold` is the lowest score that was asked for, or
    null. `same` lists items whose files are identical to the query's, byte for byte, `k` at most; they are not hits.
    """

    took_ms: float = Field(examples=[3.1])
    exact: bool
    threshold: float | None = Field(examples=[0.71])
    hits: list[SearchHit]
    same: list[SearchHit]


class VotedLabel(StrictResponse):
    """A label, its share of the vote, 0 to 1, and how many of the neighbours have it."""

    label: str = Field(examples=["cat"])
    share: float = Field(examples=[0.83])
    count: int = Field(examples=[14])


class ImageVote(StrictResponse):
    """The vote for one image: the labels with the largest shares, and the number of neighbours that voted.

    `unknown` is true if no neighbour voted: none reached the threshold, or no other file has a label.
    """

    unknown: bool
    neighbours: int = Field(examples=[20])
    labels: list[VotedLabel]


class VoteResponse(StrictResponse):
    """One vote for each image, in the order of the request."""

    took_ms: float = Field(examples=[6.2])
    votes: list[ImageVote]


class EmbedResponse(StrictResponse):
    """A vector of length 1 for each image. `model` is the fingerprint of the weights: vectors of different models
    cannot be compared.
    """

    model: str = Field(examples=["9f2c…"])
    dim: int = Field(examples=[512])
    vectors: list[list[float]] = Field(examples=[[[0.01, -0.2, 0.09]]])


class AddedItem(StrictResponse):
    """An item of the gallery. `added` is false if the same file was there already; it keeps its label then."""

    id: int = Field(examples=[13])
    added: bool
    label: str | None = Field(examples=["cat"])


class ItemsResponse(StrictResponse):
    """One item for each image, in the order of the request. They are on the disk when the response is sent."""

    items: list[AddedItem]


class ItemResponse(StrictResponse):
    """An item of the gallery. `bytes` is the size of its file, `digest` the SHA-256 of its content in hex."""

    id: int = Field(examples=[12])
    label: str | None = Field(examples=["cat"])
    name: str | None = Field(None, examples=["cat.jpg"])
    metadata: dict[str, Value] = Field(examples=[{"year": 2012}])
    bytes: int = Field(examples=[48211])
    digest: str = Field(examples=["6c1e…"])
    thumbnail: str = Field(examples=["/v1/items/12/thumbnail"])


class ModelResponse(StrictResponse):
    """The model. Images whose highest probability is below `unknown_threshold` are unknown; null: none are.

    `text`: whether `/v1/search` takes words.
    """

    name: str = Field(examples=["resnet18, tiny-imagenet (ONNX Runtime)"])
    fingerprint: str = Field(examples=["9f2c…"])
    classes: int = Field(examples=[200])
    size: int = Field(examples=[64])
    dim: int = Field(examples=[512])
    unknown_threshold: float | None = Field(examples=[0.31])
    text: bool = Field(examples=[False])


class LabelCount(StrictResponse):
    """A label of the gallery and the number of its items."""

    label: str = Field(examples=["cat"])
    count: int = Field(examples=[120])


class GalleryResponse(StrictResponse):
    """The gallery: its size, its most frequent labels (at most 1,000), and its thresholds.

    `threshold` was calibrated on the gallery's own labels (`calibrated_on` says how many); null if it was not.
    `model_threshold` comes with the model and holds for images like those of `model_calibrated_on`.
    """

    items: int = Field(examples=[400])
    threshold: float | None = Field(examples=[0.71])
    calibrated_on: str | None = Field(examples=["400 labelled items of this gallery with 2 labels"])
    model_threshold: float | None = Field(examples=[0.48])
    model_calibrated_on: str = Field(examples=["images of tiny-imagenet"])
    labels: list[LabelCount]


class KeysResponse(StrictResponse):
    """Which API keys are required. `read`: whether one is. `write`: "key"; "open", none; "off", nobody may write."""

    read: bool
    write: Literal["off", "key", "open"]


class InfoResponse(StrictResponse):
    """The model, the gallery, the limits of requests and the keys of this service."""

    name: str = Field(examples=["lookalike"])
    version: str = Field(examples=["0.1.0"])
    model: ModelResponse
    gallery: GalleryResponse | None
    limits: dict[str, int | float] = Field(examples=[{"max_body_bytes": 20 * 2**20, "max_images": 16}])
    keys: KeysResponse


class StateResponse(StrictResponse):
    """Whether the service is alive, or ready; if it is not ready, why."""

    status: Literal["live", "ready", "not ready"]
    reasons: list[str] = Field(default_factory=list, examples=[[]])


def error_body(message: str, remedy: str = "", limit: str | None = None, value: float | None = None) -> dict[str, Any]:
    """The body of an error response, as a tree of plain values.

    >>> error_body("2 images are too many.", "Send fewer.", "max_images", 1)["error"]["limit"]
    {'name': 'max_images', 'value': 1}
    """
    error: dict[str, Any] = {"message": message, "remedy": remedy}
    if limit is not None:
        error["limit"] = {"name": limit, "value": value}
    return {"error": error}
