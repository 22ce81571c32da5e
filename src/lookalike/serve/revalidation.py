"""Answers that a browser may keep, but must ask for again: by what they hold, not by what they are called."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response


def tag_of(data: bytes) -> str:
    """The ETag of a content; of another content, at the same address or not, it is another one.

    >>> tag_of(b"a") == tag_of(b"a"), tag_of(b"a") == tag_of(b"b")
    (True, False)
    """
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def revalidated(request: Request, data: bytes, tag: str, media_type: str, cache_control: str) -> Response:
    """The content, or 304 where the client has it already.

    Args:
        request: whose `If-None-Match` says what the client has.
        data: the content.
        tag: its ETag.
        media_type: of the content.
        cache_control: who may keep it; "no-cache" should be in it, so that it is asked for again.
    """
    headers = {"Cache-Control": cache_control, "ETag": tag, "Vary": "Authorization"}
    has = {one.strip().removeprefix("W/") for one in ",".join(request.headers.getlist("if-none-match")).split(",")}
    if tag in has or "*" in has:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
