"""What routes that take images share: the body read, room taken, and the work dropped when nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from lookalike.serve.forms import images_of
from lookalike.serve.refusals import RefusedError
from lookalike.serve.service import Service

SMALL = 2**20  # bytes: a body up to this is taken apart at once

T = TypeVar("T")

IMAGE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF, BMP or TIFF"}


def image_body(*, several: bool, required: bool = True) -> dict[str, Any]:
    """OpenAPI's words for a body of images."""
    field = {"type": "array", "items": IMAGE, "minItems": 1} if several else IMAGE
    form = {"type": "object", "properties": {"image": field}, "required": ["image"]}
    raw = {"schema": IMAGE}
    content = {"multipart/form-data": {"schema": form}, "image/jpeg": raw, "image/png": raw, "image/*": raw}
    return {"requestBody": {"required": required, "content": content}}


async def images_in(service: Service, request: Request, most: int | None = None) -> list[bytes]:
    """The files of a request's images, one at least.

    Args:
        service: whose limits hold.
        request: whose body was not read yet.
        most: images; None: as the settings say.

    Raises:
        RefusedError: 415 or 422, as `lookalike.serve.forms`; 503, not ready.
    """
    pictures, settings = service.pictures, service.settings
    body = await request.body()  # the guard has it, and its size is right
    take = partial(images_of, body, request.headers.get("content-type", ""), most or settings.max_images)
    return take() if len(body) <= SMALL else await pictures.run(take)


async def while_wanted(request: Request, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do something for as long as the client is there; when it goes away, the work is cancelled.

    Args:
        request: whose body has been read.
        work: what to do.

    Raises:
        RefusedError: 499, the client went away; nobody will read it.
    """
    task = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RefusedError(499, "the client went away.")
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, RefusedError):
                    await one


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
