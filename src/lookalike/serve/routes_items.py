"""Routes for the gallery's items: add, show, remove. Clients know an item by its id only."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from lookalike.serve import schemas
from lookalike.serve.errors import ERROR_RESPONSES, RefusedError
from lookalike.serve.requests import (
    check_parameters,
    checked_label,
    conditional_response,
    etag_of,
    image_body,
    read_images,
)
from lookalike.serve.routes_inference import MAX_ID, file_name, thumbnail_path
from lookalike.serve.service import Service

ID = re.compile(r"[1-9][0-9]{0,18}")
CACHE_CONTROL = "private, no-cache"  # another gallery at this address has other images with the same ids
JPEG = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
THUMBNAIL_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": JPEG, "description": "The thumbnail."}}


def create_router(service: Service) -> APIRouter:
    """The routes of a service."""
    router = APIRouter(prefix="/v1/items", responses=ERROR_RESPONSES, dependencies=[Depends(check_parameters)])

    @router.post("", openapi_extra=image_body(), summary="Add images")
    async def add(
        request: Request, label: Annotated[str | None, Query(description="Label of all the images.")] = None
    ) -> schemas.ItemsResponse:
        """Add images to the gallery. It keeps the vector and a small copy of each image, not the file.

        A file that is in the gallery already, byte for byte, is not added again and keeps its label. The new items are
        on the disk when the response is sent.
        """
        gallery = service.gallery
        label = None if label is None else checked_label(label)
        files = await read_images(service, request)
        batcher, decoder = service.batcher, service.decoder
        with batcher.reserve(len(files)):
            uploads = await decoder.decode_uploads(files)
            outputs = await batcher.run([upload.pixels for upload in uploads])
            return schemas.ItemsResponse(items=await gallery.add(uploads, outputs.vectors, label))

    @router.get("/{id}", summary="Get an item")
    async def get(id: str) -> schemas.ItemResponse:
        """Return what the gallery keeps of an item."""
        item = await service.gallery.item(parse_id(id))
        return schemas.ItemResponse(
            id=item.id,
            label=item.label,
            name=file_name(item) if service.settings.shows_names else None,
            metadata=dict(item.metadata),
            bytes=item.size,
            digest=item.digest.hex(),
            thumbnail=thumbnail_path(item.id),
        )

    @router.delete("/{id}", status_code=204, summary="Remove an item")
    async def remove(id: str) -> None:
        """Remove an item from the gallery. Its image file, if there is one, stays where it is."""
        await service.gallery.remove(parse_id(id))

    @router.get("/{id}/thumbnail", response_class=Response, responses=THUMBNAIL_RESPONSE, summary="Get a thumbnail")
    async def thumbnail(id: str, request: Request) -> Response:
        """Return a small JPEG of an item, with an ETag of its content."""
        data = await service.gallery.thumbnail(parse_id(id))
        return conditional_response(request, data, etag_of(data), "image/jpeg", CACHE_CONTROL)

    return router


def parse_id(text: str) -> int:
    """Parse an item's id in a path.

    Raises:
        RefusedError: 404, it cannot be the id of an item.
    """
    if not ID.fullmatch(text) or int(text) > MAX_ID:
        raise RefusedError(404, "there is no such item.", "Ids are whole numbers. Search results give them.")
    return int(text)
