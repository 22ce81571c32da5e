"""What the routes share: check parameters, read images from bodies, cancel work, revalidate cached content."""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.responses import Response

from lookalike.errors import nearest
from lookalike.serve.errors import MAX_NAME, RefusedError, client_disconnected
from lookalike.serve.service import Service

FIELD = "image"  # name of the form field that holds images
UNLIKE_FIELD = "unlike"  # of a search: images that the hits should not resemble
OCTET_STREAM = "application/octet-stream"
REMEDY = f"Send one image as the body (Content-Type: image/jpeg), or a form with files: curl -F {FIELD}=@FILE"
INLINE_BYTES = 2**20  # larger forms are parsed in a thread
MAX_LABEL = 1000  # characters

T = TypeVar("T")


# Query parameters.


async def check_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not have: a misspelt one would otherwise be ignored.

    Raises:
        RefusedError: 422, a parameter is unknown, is given twice where the route takes one, or is not text.
    """
    query = request.scope["query_string"]
    if not query:
        return
    try:
        given = [name for name, _ in parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")]
    except ValueError:
        raise RefusedError(422, "the query is not UTF-8.", "Encode it as UTF-8, then percent-encode it.") from None
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    types = {field.alias: field.field_info.annotation for field in route.dependant.query_params}
    for name in given:
        if name not in types:
            shown = name[:MAX_NAME]
            known = f"The parameters are {', '.join(types)}." if types else "This route has none."
            raise RefusedError(422, f"query {shown}: unknown parameter.{nearest(shown, types)}", known)
        if given.count(name) > 1 and not _is_list(types[name]):
            raise RefusedError(422, f"query {name}: given more than once.", "Give it once.")


def _is_list(annotation: object) -> bool:
    return any(get_origin(one) is list for one in (annotation, *get_args(annotation)))


def checked_label(text: str) -> str:
    """Check that a label is one line of text, in any language, with joiners and emoji.

    Raises:
        RefusedError: 422, it is empty or too long, or holds control characters.
    """
    if not text.strip() or len(text) > MAX_LABEL or any(unicodedata.category(one) == "Cc" for one in text):
        raise RefusedError(
            422,
            "query label: empty, too long, or with control characters.",
            f"Give one line of at most {MAX_LABEL} characters.",
        )
    return text


# Images in bodies. They are in memory as a whole: the admission guard has bounded their size.

IMAGE_SCHEMA = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF, BMP or TIFF"}


def image_body(*, required: bool = True, unlike: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a body of images. `unlike`: of a search, which has a second field."""
    field = {"type": "array", "items": IMAGE_SCHEMA, "minItems": 1}
    form: dict[str, Any] = {"type": "object", "properties": {FIELD: field}, "required": [FIELD]}
    if unlike:
        form = {"type": "object", "properties": {FIELD: field, UNLIKE_FIELD: field}}
    raw = {"schema": IMAGE_SCHEMA}
    content = {"multipart/form-data": {"schema": form}, "image/jpeg": raw, "image/png": raw, "image/*": raw}
    return {"requestBody": {"required": required, "content": content}}


async def read_images(service: Service, request: Request) -> list[bytes]:
    """Return the image files of a request, at least one.

    Args:
        service: gives the limits, and the threads for large forms.
        request: its body has not been read yet.

    Raises:
        RefusedError: see `parse_images`; 503, the service is not ready.
    """
    return [data for _, data in await read_fields(service, request, (FIELD,))]


async def read_fields(service: Service, request: Request, fields: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return the image files of a request with the names of their fields, at least one; see `read_images`."""
    decoder = service.decoder
    body = await request.body()
    content_type = request.headers.get("content-type", "")
    parse = partial(parse_images, body, content_type, service.settings.max_images, fields)
    return parse() if len(body) <= INLINE_BYTES else await decoder.run(parse)


def parse_images(
    body: bytes, content_type: str, limit: int, fields: Sequence[str] = (FIELD,)
) -> list[tuple[str, bytes]]:
    """Return the image files in a body with the names of their fields, at least one.

    Args:
        body: of a request, complete. If it is no form, it is an image of the field `FIELD`.
        content_type: the request's header.
        limit: number of images.
        fields: that a form may have.

    Raises:
        RefusedError: 415, another type of body; 422, no image, too many, or a malformed form, or one with other fields.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _Form(content_type, limit, fields).parse(body)
    if not (kind == OCTET_STREAM or kind.startswith("image/")):
        message = f"Content-Type '{kind[:MAX_NAME]}' is not an image." if kind else "the Content-Type is missing."
        raise RefusedError(415, message, REMEDY)
    if not body:
        raise RefusedError(422, "the body is empty.", REMEDY)
    return [(FIELD, body)]


# A part's name as RFC 5987 encodes it. Some clients send it alone, and the parser does not know it.
QUOTED_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
ENCODED_FILENAME = re.compile(rb";[ \t]*filename\*[0-9*]*[ \t]*=", re.IGNORECASE)


class _Form:
    """Parses a form in memory. The parser calls the methods below for each part, in this order."""

    def __init__(self, content_type: str, limit: int, fields: Sequence[str]) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise RefusedError(422, "the form has no boundary.", REMEDY)
        self._limit, self._fields, self._field = limit, fields, ""
        self._delimiter = b"\r\n--" + boundary
        self._images: list[tuple[str, bytes]] = []
        self._header, self._value, self._disposition = b"", b"", b""
        self._chunks: list[bytes] = []
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._check_part,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise RefusedError(422, "the form's boundary is too long.", REMEDY) from None

    def parse(self, body: bytes) -> list[tuple[str, bytes]]:
        if body.count(self._delimiter) > self._limit + 1:  # the parser steps through delimiters byte by byte
            raise self._too_many()
        try:
            self._parser.write(body)
            self._parser.finalize()
        except FormParserError:
            raise RefusedError(422, "the form is malformed.", REMEDY) from None
        if not self._is_complete:
            raise RefusedError(422, "the form is cut short.", REMEDY)
        if not self._images:
            raise RefusedError(422, "the form has no image.", REMEDY)
        return self._images

    def _begin_part(self) -> None:
        self._disposition, self._chunks = b"", []
        if len(self._images) == self._limit:
            raise self._too_many()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _check_part(self) -> None:
        options: dict[bytes, Any] = parse_options_header(self._disposition)[1]
        self._field = name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._fields:
            names = " or ".join(f"'{field}'" for field in self._fields)
            raise RefusedError(422, f"the form has a field '{name[:MAX_NAME]}'.", f"Name all files {names}. {REMEDY}")
        if b"filename" not in options and not ENCODED_FILENAME.search(QUOTED_STRING.sub(b'""', self._disposition)):
            raise RefusedError(422, f"the field '{name}' is not a file.", REMEDY)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end_part(self) -> None:
        self._images.append((self._field, b"".join(self._chunks)))

    def _end(self) -> None:
        self._is_complete = True

    def _too_many(self) -> RefusedError:
        return RefusedError(
            422, f"more than {self._limit} images in one request.", "Send them in several requests.",
            limit="max_images", value=self._limit,
        )  # fmt: skip


# Clients that go away.


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects.

    Args:
        request: its body has been read.
        work: a coroutine.

    Raises:
        RefusedError: 499, the client disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise client_disconnected()
    finally:
        for one in (task, disconnect):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, RefusedError):
                    await one


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Responses that a browser may keep, but must revalidate each time.


def etag_of(data: bytes) -> str:
    """The ETag of a content.

    >>> etag_of(b"a") == etag_of(b"a"), etag_of(b"a") == etag_of(b"b")
    (True, False)
    """
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def conditional_response(request: Request, data: bytes, etag: str, media_type: str, cache_control: str) -> Response:
    """Return the content, or 304 if the client's `If-None-Match` says that it has it.

    Args:
        request: of the client.
        data: the content.
        etag: of the content, from `etag_of`.
        media_type: of the content.
        cache_control: header; with "no-cache" the client asks again each time.
    """
    headers = {"Cache-Control": cache_control, "ETag": etag, "Vary": "Authorization"}
    known = {one.strip().removeprefix("W/") for one in ",".join(request.headers.getlist("if-none-match")).split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
