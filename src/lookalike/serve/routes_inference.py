"""Routes for images: classify, search, embed. None of them changes anything."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from lookalike.errors import InputError
from lookalike.gallery.query import QueryVector, Threshold, parse_threshold
from lookalike.gallery.store.base import GalleryItem, Hit
from lookalike.models.prediction import Prediction, predictions_of
from lookalike.serve import schemas
from lookalike.serve.errors import ERROR_RESPONSES, RefusedError
from lookalike.serve.requests import check_parameters, checked_label, image_body, read_images, while_connected
from lookalike.serve.service import Service

MAX_ID = 2**63 - 1
MAX_LABELS = 100  # in one filter

NumClasses = Annotated[int, Query(ge=1, description="Number of classes for each image.")]
ItemId = Annotated[int | None, Query(ge=1, le=MAX_ID, description="Id of an item, in place of an image.")]
NumHits = Annotated[int, Query(ge=1, description="Number of hits.")]
MinScore = Annotated[
    str,
    Query(
        description="Lowest score of a hit: a cosine from -1 to 1, 'calibrated' for the gallery's own threshold, or "
        "'none' for the k nearest items, whatever their scores.",
        examples=["none", "calibrated", "0.7"],
    ),
]
Labels = Annotated[
    list[str] | None, Query(max_length=MAX_LABELS, description="Only items with this label, or one of these labels.")
]
Exact = Annotated[bool, Query(description="Compare with every item, instead of using the approximate index.")]


def create_router(service: Service) -> APIRouter:
    """The routes of a service."""
    router = APIRouter(responses=ERROR_RESPONSES, dependencies=[Depends(check_parameters)])

    @router.post("/v1/predict", openapi_extra=image_body(several=True), summary="Classify images")
    async def predict(request: Request, k: NumClasses = 5) -> schemas.PredictResponse:
        """Return the most probable classes of each image with calibrated probabilities, and whether it is unknown."""
        start = time.perf_counter()
        _check_k(k, service)
        runtime = service.runtime
        if not runtime.class_names:
            raise RefusedError(409, "this model has no classes, only vectors.", "Use /v1/search or /v1/embed.")
        files = await read_images(service, request)
        outputs = await while_connected(request, service.run(files))
        assert outputs.logits is not None
        predictions = [_prediction_response(each) for each in predictions_of(outputs.logits, runtime, k)]
        return schemas.PredictResponse(model=runtime.name, took_ms=_ms_since(start), predictions=predictions)

    @router.post(
        "/v1/search", openapi_extra=image_body(several=False, required=False), summary="Search for similar items"
    )
    async def search(
        request: Request,
        id: ItemId = None,
        k: NumHits = 10,
        threshold: MinScore = "none",
        label: Labels = None,
        exact: Exact = False,
    ) -> schemas.SearchResponse:
        """Return the items of the gallery nearest to an image, or to one of its items.

        The item itself is not a hit. Items whose files are identical to the query's are in `same`, not in `hits`.
        """
        start = time.perf_counter()
        _check_k(k, service)
        gallery = service.gallery
        min_score = _threshold_of(threshold)
        labels = [checked_label(one) for one in label or ()]
        query: QueryVector | int
        if id is None:
            (file,) = await read_images(service, request, 1)
            digest = await service.decoder.run(lambda: hashlib.sha256(file).digest())
            outputs = await while_connected(request, service.run([file]))
            query = QueryVector(outputs.vectors[0], digest=digest)
        elif "content-type" in request.headers:
            raise RefusedError(422, "an id and an image are given.", "Leave one out.")
        else:
            query = id
        result = await while_connected(
            request, gallery.search(query, k, labels=labels, threshold=min_score, exact=exact)
        )
        as_response = partial(_hit_response, show_names=service.settings.shows_names)
        return schemas.SearchResponse(
            took_ms=_ms_since(start),
            exact=result.exact,
            threshold=result.threshold,
            hits=[as_response(hit) for hit in result],
            same=[as_response(hit) for hit in result.same],
        )

    @router.post("/v1/embed", openapi_extra=image_body(several=True), summary="Compute vectors")
    async def embed(request: Request) -> schemas.EmbedResponse:
        """Return a vector of length 1 for each image. The cosine of two vectors is the similarity of the images."""
        files = await read_images(service, request)
        outputs = await while_connected(request, service.run(files))
        runtime = service.runtime
        return schemas.EmbedResponse(model=runtime.fingerprint, dim=runtime.dim, vectors=outputs.vectors.tolist())

    return router


def _prediction_response(prediction: Prediction) -> schemas.ImagePrediction:
    classes = [
        schemas.PredictedClass(label=each.label, class_id=each.class_id, probability=each.probability)
        for each in prediction
    ]
    return schemas.ImagePrediction(unknown=prediction.unknown, classes=classes)


def thumbnail_path(id: int) -> str:
    """The path of an item's thumbnail."""
    return f"/v1/items/{id}/thumbnail"


def file_name(item: GalleryItem) -> str:
    """The name of an item's file, without its folders."""
    return item.path.replace("\\", "/").rpartition("/")[2]


def _hit_response(hit: Hit, show_names: bool) -> schemas.SearchHit:
    return schemas.SearchHit(
        id=hit.id,
        score=hit.score,
        label=hit.label,
        name=file_name(hit) if show_names else None,
        metadata=dict(hit.metadata),
        thumbnail=thumbnail_path(hit.id),
    )


def _threshold_of(text: str) -> Threshold:
    try:
        return parse_threshold(text)
    except InputError as error:
        raise RefusedError(422, "query threshold: not a cosine.", error.remedy) from None


def _check_k(k: int, service: Service) -> None:
    limit = service.settings.max_answers
    if k > limit:
        raise RefusedError(422, f"query k: more than {limit:,}.", "Ask for fewer.", limit="max_answers", value=limit)


def _ms_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
