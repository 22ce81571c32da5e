"""Routes for images: classify, search, embed. None of them changes anything."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from lookalike.errors import InputError
from lookalike.gallery.query import UNLIKE_WEIGHT, Box, QueryPart, QueryVector, Threshold, parse_box, parse_threshold
from lookalike.gallery.query import Query as SearchQuery
from lookalike.gallery.reranking import MAX_RERANKED
from lookalike.gallery.store.base import GalleryItem, Hit
from lookalike.gallery.vote import NEIGHBOURS, Vote
from lookalike.models.prediction import Prediction, predictions_of
from lookalike.serve import schemas
from lookalike.serve.errors import ERROR_RESPONSES, RefusedError
from lookalike.serve.requests import (
    FIELD,
    UNLIKE_FIELD,
    check_parameters,
    checked_label,
    image_body,
    read_fields,
    read_images,
    while_connected,
)
from lookalike.serve.service import Service

MAX_ID = 2**63 - 1
MAX_LABELS = 100  # in one filter
MAX_PARTS = 100  # ids in one query
MAX_WEIGHT = 1000.0
MAX_TEXTS = 16  # in one query
MAX_TEXT = 1000  # characters of one

NumClasses = Annotated[int, Query(ge=1, description="Number of classes for each image.")]
ItemId = Annotated[int, Field(ge=1, le=MAX_ID)]
LikeIds = Annotated[
    list[ItemId] | None,
    Query(max_length=MAX_PARTS, description="Ids of items that the hits should resemble, besides images."),
]
UnlikeIds = Annotated[
    list[ItemId] | None,
    Query(max_length=MAX_PARTS, description="Ids of items that the hits should not resemble, besides images."),
]
UnlikeWeight = Annotated[
    float, Query(ge=0, le=MAX_WEIGHT, description="Weight of the mean of those that the hits should not resemble.")
]
Texts = Annotated[
    list[Annotated[str, Field(max_length=MAX_TEXT, pattern=r"\S")]] | None,
    Query(
        max_length=MAX_TEXTS,
        description="Words that the hits should show, if the model has a text tower (`model.text` of `/v1/about`).",
        examples=[["a dog on a beach"]],
    ),
]
BoxText = Annotated[
    str | None,
    Query(
        description="Search with this part of the image: left, top, right, bottom in pixels of the upright image.",
        examples=["40,30,200,180"],
    ),
]
Rerank = Annotated[
    int | None,
    Query(
        ge=1,
        le=MAX_RERANKED,
        description="Sort so many of the nearest items, at least `k`, by their k-reciprocal neighbours. 100 is usual.",
    ),
]
NumNeighbours = Annotated[int, Query(ge=1, description="Number of labelled items that vote.")]
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

    @router.post("/v1/predict", openapi_extra=image_body(), summary="Classify images")
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
        "/v1/search", openapi_extra=image_body(required=False, unlike=True), summary="Search for similar items"
    )
    async def search(
        request: Request,
        id: LikeIds = None,
        text: Texts = None,
        unlike: UnlikeIds = None,
        unlike_weight: UnlikeWeight = UNLIKE_WEIGHT,
        box: BoxText = None,
        k: NumHits = 10,
        threshold: MinScore = "none",
        label: Labels = None,
        exact: Exact = False,
        rerank: Rerank = None,
    ) -> schemas.SearchResponse:
        """Return the items of the gallery nearest to an image, to words or to one of its items, or to several at once.

        All images, texts and ids are one query: the mean of those that the hits should resemble, minus `unlike_weight`
        times the mean of those that they should not. The items themselves are not hits. Items whose files are identical
        to the query's are in `same`, not in `hits`. With `rerank`, the hits are no longer in descending order of score.
        """
        start = time.perf_counter()
        _check_k(k, service)
        if rerank is not None and rerank < k:
            raise RefusedError(422, f"query rerank: less than k, {k:,}.", "Give at least k; 100 is usual.")
        gallery = service.gallery
        min_score = _threshold_of(threshold)
        labels = [checked_label(one) for one in label or ()]
        if not all(one.strip() for one in text or ()):  # such as U+001C, which the pattern of `Texts` lets through
            raise RefusedError(422, "query text: empty.", "Give words, such as 'a dog on a beach'.")
        files: list[tuple[str, bytes]] = []
        if not (id or text or unlike) or "content-type" in request.headers:
            files = await read_fields(service, request, (FIELD, UNLIKE_FIELD))
        images = [data for field, data in files if field == FIELD]
        part = _box_of(box, len(images))
        likes: list[QueryPart] = [*(id or ())]
        unlikes: list[QueryPart] = [*(unlike or ())]
        if not likes and not images and not text:
            raise RefusedError(422, "there is nothing that the hits should resemble.", "Give an image, words or an id.")
        if text:
            likes += list(await while_connected(request, service.embed_text(text)))
        if files:
            others = [data for field, data in files if field != FIELD]
            vectors = await _query_vectors(request, service, [*images, *others], part)
            likes += vectors[: len(images)]
            unlikes += vectors[len(images) :]
        result = await while_connected(
            request,
            gallery.search(
                SearchQuery(likes, unlikes, unlike_weight),
                k,
                labels=labels,
                threshold=min_score,
                exact=exact,
                rerank=rerank,
            ),
        )
        as_response = partial(_hit_response, show_names=service.settings.shows_names)
        return schemas.SearchResponse(
            took_ms=_ms_since(start),
            exact=result.exact,
            threshold=result.threshold,
            hits=[as_response(hit) for hit in result],
            same=[as_response(hit) for hit in result.same],
        )

    @router.post("/v1/vote", openapi_extra=image_body(), summary="Label images by their neighbours")
    async def vote(
        request: Request, k: NumClasses = 5, neighbours: NumNeighbours = NEIGHBOURS, threshold: MinScore = "none"
    ) -> schemas.VoteResponse:
        """Label images by a vote among their nearest labelled items of the gallery, whatever classes the model has.

        An item whose score is 0.07 higher counts 2.7 times. Items of the image's own file do not vote.
        """
        start = time.perf_counter()
        _check_k(k, service)
        _check_k(neighbours, service, "neighbours")
        gallery = service.gallery
        min_score = _threshold_of(threshold)
        queries = await _query_vectors(request, service, await read_images(service, request), None)
        votes = await while_connected(request, gallery.vote(queries, k, neighbours=neighbours, threshold=min_score))
        return schemas.VoteResponse(took_ms=_ms_since(start), votes=[_vote_response(one) for one in votes])

    @router.post("/v1/embed", openapi_extra=image_body(), summary="Compute vectors")
    async def embed(request: Request) -> schemas.EmbedResponse:
        """Return a vector of length 1 for each image. The cosine of two vectors is the similarity of the images."""
        files = await read_images(service, request)
        outputs = await while_connected(request, service.run(files))
        runtime = service.runtime
        return schemas.EmbedResponse(model=runtime.fingerprint, dim=runtime.dim, vectors=outputs.vectors.tolist())

    return router


async def _query_vectors(request: Request, service: Service, files: list[bytes], box: Box | None) -> list[QueryVector]:
    """The vectors of images, with the digests of their files. `box`: part of the first image."""
    fingerprint = service.runtime.fingerprint
    digests = await service.decoder.run(lambda: [hashlib.sha256(data).digest() for data in files])
    outputs = await while_connected(request, service.run(files, box))
    return [QueryVector(vector, fingerprint, digest) for vector, digest in zip(outputs.vectors, digests, strict=True)]


def _prediction_response(prediction: Prediction) -> schemas.ImagePrediction:
    classes = [
        schemas.PredictedClass(label=each.label, class_id=each.class_id, probability=each.probability)
        for each in prediction
    ]
    return schemas.ImagePrediction(unknown=prediction.unknown, classes=classes)


def _vote_response(vote: Vote) -> schemas.ImageVote:
    labels = [schemas.VotedLabel(label=each.label, share=each.share, count=each.count) for each in vote]
    return schemas.ImageVote(unknown=vote.unknown, neighbours=len(vote.neighbours), labels=labels)


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


def _box_of(text: str | None, images: int) -> Box | None:
    if text is None:
        return None
    if images != 1:
        raise RefusedError(422, "query box: it is a part of one image.", "Send exactly one image with it.")
    try:
        return parse_box(text)
    except InputError as error:
        raise RefusedError(422, "query box: not a box.", error.remedy) from None


def _check_k(k: int, service: Service, name: str = "k") -> None:
    limit = service.settings.max_answers
    if k > limit:
        raise RefusedError(
            422, f"query {name}: more than {limit:,}.", "Ask for fewer.", limit="max_answers", value=limit
        )


def _ms_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
