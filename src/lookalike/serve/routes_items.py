"""Routes of the gallery's items: added, looked at, shown, removed. An item is only ever known by its id."""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from lookalike.serve import schemas
from lookalike.serve.errors import FAULTS, RefusedError
from lookalike.serve.parameters import check_parameters
from lookalike.serve.requests import image_body, images_in
from lookalike.serve.revalidation import revalidated, tag_of
from lookalike.serve.routes_inference import LARGEST_ID, checked_label, name_of, thumbnail_of
from lookalike.serve.service import Service

ID = re.compile(r"[1-9][0-9]{0,18}")
KEPT = "private, no-cache"  # another gallery at this address has other pictures of the same ids
PICTURE = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": PICTURE, "description": "The small picture."}}


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(prefix="/v1/items", responses=FAULTS, dependencies=[Depends(check_parameters)])

    @router.post("", openapi_extra=image_body(several=True), summary="Add images")
    async def add(
        request: Request, label: Annotated[str | None, Query(description="What all of them are.")] = None
    ) -> schemas.ItemsResponse:
        """Add images to the gallery. A picture that is there, byte for byte, is not added again and keeps its label.
        What is answered is on the disk. Of each image its vector and a small copy are kept.
        """
        collection = service.collection
        named = None if label is None else checked_label(label)
        files = await images_in(service, request)
        with service.batcher.places(len(files)):
            uploads = await service.pictures.uploads(files)
            outputs = await service.batcher.run([one.pixels for one in uploads])
            added = await collection.add(uploads, np.asarray(outputs.vectors, np.float32), named)
        return schemas.ItemsResponse(items=[schemas.AddedItem(id=id, added=new, label=has) for id, new, has in added])

    @router.get("/{id}", summary="An item")
    async def item(id: str) -> schemas.ItemResponse:
        """What the gallery has of a picture."""
        row = await service.collection.row(id_of(id))
        return schemas.ItemResponse(
            id=row.id,
            label=row.label,
            name=name_of(row) if service.settings.shows_names else None,
            metadata=dict(row.metadata),
            bytes=row.size,
            digest=row.digest.hex(),
            thumbnail=thumbnail_of(row.id),
        )

    @router.delete("/{id}", status_code=204, summary="Remove an item")
    async def remove(id: str) -> None:
        """Remove an item. A picture file that it was made of stays where it is."""
        await service.collection.remove(id_of(id))

    @router.get("/{id}/thumbnail", response_class=Response, responses=JPEG, summary="A small picture")
    async def thumbnail(id: str, request: Request) -> Response:
        """The item's picture as a small JPEG."""
        data = await service.collection.thumbnail(id_of(id))
        return revalidated(request, data, tag_of(data), "image/jpeg", KEPT)

    return router


def id_of(text: str) -> int:
    """An item's id, as it stands in a path.

    Raises:
        RefusedError: 404, there can be no such item.
    """
    if not ID.fullmatch(text) or int(text) > LARGEST_ID:
        raise RefusedError(404, "there is no such item.", "Ids are whole numbers, in the answers of a search.")
    return int(text)
