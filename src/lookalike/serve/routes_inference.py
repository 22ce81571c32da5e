"""Routes that answer about pictures: what they are, what looks like them, their vectors. None changes anything."""

from __future__ import annotations

import hashlib
import time
import unicodedata
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.query import Threshold, parse_threshold
from lookalike.gallery.store.base import GalleryItem
from lookalike.models.prediction import Prediction, predictions_of
from lookalike.models.runtime import Outputs
from lookalike.serve import schemas
from lookalike.serve.errors import FAULTS, RefusedError
from lookalike.serve.parameters import check_parameters
from lookalike.serve.requests import image_body, images_in, while_wanted
from lookalike.serve.service import Service

LONGEST_LABEL = 1000  # characters
LARGEST_ID = 2**63 - 1

Classes = Annotated[int, Query(ge=1, description="Classes to return for each image.")]
Id = Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="An item, instead of an image.")]
Neighbours = Annotated[int, Query(ge=1, description="Hits to return.")]
Cutoff = Annotated[
    str,
    Query(
        description="Lowest score of a hit: a cosine from -1 to 1, 'calibrated' for the gallery's own threshold, "
        "or 'none' for the k nearest items whatever their scores.",
        examples=["none", "calibrated", "0.7"],
    ),
]
Labels = Annotated[list[str] | None, Query(max_length=100, description="Only items of this label, or one of these.")]
Exact = Annotated[bool, Query(description="Compare with every item.")]


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(responses=FAULTS, dependencies=[Depends(check_parameters)])

    async def outputs_of(request: Request, count: int | None = None) -> Outputs:
        return await outputs_for(request, await images_in(service, request, count))

    async def outputs_for(request: Request, files: list[bytes]) -> Outputs:
        with service.batcher.places(len(files)):
            return await while_wanted(request, lambda: _through(service, files))

    @router.post("/v1/predict", openapi_extra=image_body(several=True), summary="Classify images")
    async def predict(request: Request, k: Classes = 5) -> schemas.PredictResponse:
        """Return the most probable classes of each image with calibrated probabilities, and whether it is unknown."""
        start = time.perf_counter()
        _check_most("k", k, service)
        runtime = service.runtime
        if not runtime.class_names:
            raise RefusedError(409, "this model has no classes, only vectors.", "Use /v1/search or /v1/embed.")
        outputs = await outputs_of(request)
        assert outputs.logits is not None
        predictions = [_prediction(prediction) for prediction in predictions_of(outputs.logits, runtime, k)]
        return schemas.PredictResponse(model=runtime.name, took_ms=_since(start), predictions=predictions)

    @router.post(
        "/v1/search",
        openapi_extra=image_body(several=False, required=False),
        summary="What looks like an image or an item",
    )
    async def search(
        request: Request,
        id: Id = None,
        k: Neighbours = 10,
        threshold: Cutoff = "none",
        label: Labels = None,
        exact: Exact = False,
    ) -> schemas.SearchResponse:
        """The items of the gallery most alike to an image, or to one of them, which is then left out. Items of the very
        same file, byte for byte, are told apart, in `same`.
        """
        start = time.perf_counter()
        _check_most("k", k, service)
        collection = service.collection
        limit = threshold_of(threshold)
        labels = [checked_label(one) for one in label or ()]
        query: NDArray[np.float32] | int
        digest = None
        if id is None:
            files = await images_in(service, request, 1)
            digest = await service.pictures.run(lambda: hashlib.sha256(files[0]).digest())
            query = (await outputs_for(request, files)).vectors[0]
        elif "content-type" in request.headers:
            raise RefusedError(422, "an id and an image.", "Leave one out.")
        else:
            query = id
        found = await while_wanted(
            request, lambda: collection.search(query, k, labels=labels, threshold=limit, exact=exact, digest=digest)
        )
        names = service.settings.shows_names
        hits, same = (
            [
                schemas.SearchHit(
                    id=hit.id,
                    score=hit.score,
                    label=hit.label,
                    name=name_of(hit) if names else None,
                    metadata=dict(hit.metadata),
                    thumbnail=thumbnail_of(hit.id),
                )
                for hit in some
            ]
            for some in (found.hits, found.same)
        )
        return schemas.SearchResponse(
            took_ms=_since(start), exact=found.exact, threshold=found.threshold, hits=hits, same=same
        )

    @router.post("/v1/embed", openapi_extra=image_body(several=True), summary="Vectors of images")
    async def embed(request: Request) -> schemas.EmbedResponse:
        """A vector of length 1 for each image; the cosine of two says how alike the images are."""
        outputs = await outputs_of(request)
        runtime = service.runtime
        return schemas.EmbedResponse(model=runtime.fingerprint, dim=runtime.dim, vectors=outputs.vectors.tolist())

    return router


def _check_most(name: str, value: int, service: Service) -> None:
    most = service.settings.max_answers
    if value > most:
        raise RefusedError(422, f"query {name}: more than {most:,}.", "Ask for fewer.", limit="max_answers", value=most)


async def _through(service: Service, files: list[bytes]) -> Outputs:
    return await service.batcher.run(await service.pictures.decode(files))


def _prediction(prediction: Prediction) -> schemas.ImagePrediction:
    classes = [
        schemas.PredictedClass(label=each.label, class_id=each.class_id, probability=each.probability)
        for each in prediction
    ]
    return schemas.ImagePrediction(unknown=prediction.unknown, classes=classes)


def threshold_of(text: str) -> Threshold:
    """A threshold as it is written in a query.

    >>> threshold_of("0.7"), threshold_of("none")
    (0.7, None)
    """
    try:
        return parse_threshold(text)
    except InputError as error:
        raise RefusedError(422, "query threshold: not a cosine.", error.remedy) from None


def checked_label(text: str) -> str:
    """A label that can be kept and asked for: a text of any language, with joiners and emoji, in one line.

    Raises:
        RefusedError: 422, it is empty, too long, or holds control characters.
    """
    if not text.strip() or len(text) > LONGEST_LABEL or any(unicodedata.category(one) == "Cc" for one in text):
        raise RefusedError(
            422,
            "query label: no label.",
            f"Give a text without line breaks and control characters, of at most {LONGEST_LABEL} characters.",
        )
    return text


def thumbnail_of(id: int) -> str:
    """Where a row's small picture is."""
    return f"/v1/items/{id}/thumbnail"


def name_of(row: GalleryItem) -> str:
    """A row's file name, without its folders."""
    return row.path.replace("\\", "/").rpartition("/")[2]


def _since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
