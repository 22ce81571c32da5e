"""What routes that take images share: the body read, room taken, and the work dropped when nobody waits for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from lookalike.serve.errors import RefusedError
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
        RefusedError: 415 or 422, as `lookalike.serve.requests`; 503, not ready.
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


# The images of a request: one raw body, or the parts of a form. All in memory, since the body's size is limited.

FIELD = "image"


RAW = "application/octet-stream"


HOW = "Send one image as the body (Content-Type: image/jpeg), or a form with files named 'image': curl -F image=@FILE."


def images_of(body: bytes, content_type: str, most: int) -> list[bytes]:
    """The files of the images in a body, one at least.

    Args:
        body: of the request.
        content_type: its header.
        most: images.

    Raises:
        RefusedError: 415, another type; 422, no image, too many, or a form that is broken or has other fields.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _Form(content_type, most).images(body)
    if not (kind == RAW or kind.startswith("image/")):
        raise RefusedError(
            415, f"a body of type '{kind[:80]}' is no image." if kind else "the body's type is not said.", HOW
        )
    if not body:
        raise RefusedError(422, "the body is empty.", HOW)
    return [body]


# Parts and bytes of headers are bounded; what is a quoted string in them is no parameter.
QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


ENCODED_NAME = re.compile(
    rb";[ \t]*filename\*[0-9*]*[ \t]*=", re.IGNORECASE
)  # RFC 5987; some clients send nothing else


class _Form:
    """A form on its way through the parser, which calls the methods below, in this order, for each part."""

    def __init__(self, content_type: str, most: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise RefusedError(422, "the form has no boundary.", HOW)
        self._most = most
        self._boundary = b"\r\n--" + boundary
        self._images: list[bytes] = []
        self._name, self._value, self._disposition = b"", b"", b""
        self._data: list[bytes] = []
        self._whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._check_part,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise RefusedError(422, "the form's boundary is too long.", HOW) from None

    def images(self, body: bytes) -> list[bytes]:
        if body.count(self._boundary) > self._most + 1:  # the parser steps through these one byte at a time
            raise self._too_many()
        try:
            self._parser.write(body)
            self._parser.finalize()
        except FormParserError:
            raise RefusedError(422, "the form is broken.", HOW) from None
        if not self._whole:
            raise RefusedError(422, "the form is cut short.", HOW)
        if not self._images:
            raise RefusedError(422, "the form has no image.", HOW)
        return self._images

    def _begin(self) -> None:
        self._disposition, self._data = b"", []
        if len(self._images) == self._most:
            raise self._too_many()

    def _too_many(self) -> RefusedError:
        return RefusedError(422, f"more than {self._most} images in one request.", "Send them in several requests.",
                            limit="max_images", value=self._most)  # fmt: skip

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _check_part(self) -> None:
        options: dict[bytes, Any] = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise RefusedError(422, f"the form has a field '{name[:80]}'.", f"Name all files '{FIELD}'. {HOW}")
        if b"filename" not in options and not ENCODED_NAME.search(QUOTED.sub(b'""', self._disposition)):
            raise RefusedError(422, f"the field '{FIELD}' is no file.", HOW)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        self._images.append(b"".join(self._data))

    def _end(self) -> None:
        self._whole = True
