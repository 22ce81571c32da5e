"""The guard before the routes: what may come in at all, from whom, how large, how fast, and how much at once.

It knows nothing of what routes do. Bodies are received here, whole, before a route sees the request: so a slow or a
large one costs a little memory and no thread, and is cut off. Answers leave with headers that keep browsers from
running or embedding anything that is not ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.serve.keys import HARMLESS, Keys, right_for
from lookalike.serve.refusals import RefusedError, overloaded
from lookalike.serve.settings import Settings

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An application with a guard before it.

    Args:
        app: what answers those that come through.
        settings: keys and limits.
        is_full: whether there is no room for another image, as the routes would find out after a body was received.
    """

    def __init__(self, app: ASGIApp, settings: Settings, is_full: Callable[[], bool] = lambda: False) -> None:
        self._app, self._settings, self._is_full = app, settings, is_full
        self._keys = Keys(settings)
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            right = right_for(scope["method"], scope["path"])
            _check_host(headers, self._settings)
            _check_origin(scope["method"], headers)
            self._keys.check(right, headers.get("authorization"))
            if right == "open":
                await self._app(scope, receive, headed)
            else:
                await self._let_in(scope, receive, headed)
        except RefusedError as error:
            close = {"Connection": "close"} if error.status in (408, 413) else {}  # there may be more of it
            await JSONResponse(error.body, error.status, {**error.headers, **close})(scope, receive, headed)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, headers = self._settings, Headers(scope=scope)
        if self._requests >= settings.max_requests:
            raise overloaded("max_requests", settings.max_requests)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if has_body and self._is_full():
            raise overloaded("max_waiting", settings.max_waiting)  # the server drops what comes of the body
        self._requests += 1
        held = 0
        try:
            async with asyncio.timeout(settings.receive_seconds):
                body, held = await self._body(headers, receive)
        except TimeoutError:
            self._requests -= 1
            seconds = settings.receive_seconds
            raise RefusedError(
                408, f"the request has not arrived within {seconds:g} s.", "Send smaller images.",
                limit="receive_seconds", value=seconds,
            ) from None  # fmt: skip
        except BaseException:
            self._requests -= 1
            raise
        try:
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._requests -= 1
            self._bytes -= held

    async def _body(self, headers: Headers, receive: Receive) -> tuple[list[bytes], int]:
        """The body in pieces, and how many bytes of the common store it takes."""
        most = self._settings.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(499, "the client went away.")
                piece = message.get("body", b"")
                size += len(piece)
                self._bytes += len(piece)
                if size > most:
                    raise _too_large(most)
                if self._bytes > self._settings.max_held_bytes:
                    raise overloaded("max_held_bytes", self._settings.max_held_bytes)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return pieces, size
        except BaseException:
            self._bytes -= size
            raise


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        413, f"the body is larger than {most / 2**20:g} MiB.", "Send smaller images, or fewer.",
        limit="max_body_bytes", value=most,
    )  # fmt: skip


def _replayed(pieces: list[bytes], receive: Receive) -> Receive:
    """The body that has been received, and then what comes after it: that the client went away."""
    waiting = pieces[::-1]

    async def again() -> Message:
        if waiting:
            piece = waiting.pop()
            return {"type": "http.request", "body": piece, "more_body": bool(waiting)}
        return await receive()

    return again


def _check_host(headers: Headers, settings: Settings) -> None:
    """On loopback, refuse names that are not this machine's: a page elsewhere may have given its name our address."""
    if not settings.is_loopback:
        return
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        name = ""
    if name not in ("localhost", "::1", settings.host.strip("[]")) and not name.startswith("127."):
        raise RefusedError(403, "this name is not served.", "Use the address that the service printed.")


def _check_origin(method: str, headers: Headers) -> None:
    """Refuse what pages of other sites send with the browser of somebody who may come in."""
    if method in HARMLESS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    elsewhere = site is not None and site not in ("same-origin", "none")
    if site is None and origin is not None:
        elsewhere = urlsplit(origin).netloc != headers.get("host", "")
    if elsewhere:
        raise RefusedError(403, "this was sent by a page of another site.", "Use the page of this service.")
