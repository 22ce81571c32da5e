"""Admission of requests, before the routes: host, origin, key, size, time, and the number of requests at once.

Bodies are received here, whole, before a route sees the request: a slow or large request costs a little memory and no
thread, and is cut off at a limit. Responses get headers that keep browsers from running or embedding foreign content.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.serve.auth import SAFE_METHODS, ApiKeys, permission_for
from lookalike.serve.errors import RefusedError, client_disconnected, overloaded
from lookalike.serve.settings import Settings

SECURITY_HEADERS = {
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
HOST = re.compile(  # RFC 9110, section 7.2
    r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@%,\\]+)(:[0-9]{1,5})?", re.IGNORECASE
)


class AdmissionGuard:
    """ASGI middleware that lets a request in, or answers it with an error.

    Args:
        app: answers the requests that are let in.
        settings: keys and limits.
        is_full: whether there is no room for another image. Then requests with a body are refused before it is read.
    """

    def __init__(self, app: ASGIApp, settings: Settings, is_full: Callable[[], bool] = lambda: False) -> None:
        self._app, self._settings, self._is_full = app, settings, is_full
        self._keys = ApiKeys(settings)
        self._requests = 0  # let in and not yet answered
        self._held_bytes = 0  # of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")  # unless the route allows revalidation
            await send(message)

        headers = Headers(scope=scope)
        try:
            permission = permission_for(scope["method"], scope["path"])
            _check_host(headers, self._settings)
            _check_origin(scope["method"], headers)
            self._keys.check(permission, headers.get("authorization"))
            app = self._app if permission == "open" else self._admit
            if scope["method"] == "HEAD":
                await _answer_head(app, scope, receive, send_with_headers)
            else:
                await app(scope, receive, send_with_headers)
        except RefusedError as error:
            close = {"Connection": "close"} if error.status in (408, 413) else {}  # the rest of the body may follow
            response = JSONResponse(error.body, error.status, {**error.headers, **close})
            await response(scope, receive, send_with_headers)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the body within the limits, then run the app."""
        settings, headers = self._settings, Headers(scope=scope)
        if self._requests >= settings.max_requests:
            raise overloaded("max_requests", settings.max_requests)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if has_body and self._is_full():
            raise overloaded("max_waiting", settings.max_waiting)
        self._requests += 1
        held = 0
        try:
            try:
                async with asyncio.timeout(settings.receive_seconds):
                    body, held = await self._receive_body(headers, receive)
            except TimeoutError:
                seconds = settings.receive_seconds
                raise RefusedError(
                    408, f"the request did not arrive within {seconds:g} s.", "Send smaller images.",
                    limit="receive_seconds", value=seconds,
                ) from None  # fmt: skip
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._requests -= 1
            self._held_bytes -= held

    async def _receive_body(self, headers: Headers, receive: Receive) -> tuple[list[bytes], int]:
        """Return the body in pieces, and its size, which has been added to `_held_bytes`."""
        limit = self._settings.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _body_too_large(limit)
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise client_disconnected()
                piece = message.get("body", b"")
                size += len(piece)
                self._held_bytes += len(piece)
                if size > limit:
                    raise _body_too_large(limit)
                if self._held_bytes > self._settings.max_held_bytes:
                    raise overloaded("max_held_bytes", self._settings.max_held_bytes)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return pieces, size
        except BaseException:
            self._held_bytes -= size
            raise


def _body_too_large(limit: int) -> RefusedError:
    return RefusedError(
        413, f"the body is larger than {limit / 2**20:g} MiB.", "Send smaller images, or fewer.",
        limit="max_body_bytes", value=limit,
    )  # fmt: skip


def _replay(pieces: list[bytes], receive: Receive) -> Receive:
    """An ASGI `receive` that gives the received body, then what follows: the client's disconnect."""
    rest = pieces[::-1]

    async def replay() -> Message:
        if rest:
            piece = rest.pop()
            return {"type": "http.request", "body": piece, "more_body": bool(rest)}
        return await receive()

    return replay


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD with the status and headers of GET, and no body."""

    async def send_without_body(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    get_scope = {**scope, "method": "GET"}
    try:
        await app(get_scope, receive, send_without_body)
    finally:
        if "route" in get_scope:
            scope["route"] = get_scope["route"]  # for the telemetry


def _check_host(headers: Headers, settings: Settings) -> None:
    """On loopback, refuse names that are not this machine's: a foreign page may have pointed its name here (DNS
    rebinding).
    """
    if settings.is_loopback and not _is_local_name(headers.get("host", ""), settings.host):
        raise RefusedError(403, "this host name is not served.", "Use the address that the service printed.")


def _is_local_name(host: str, own: str) -> bool:
    """Whether `NAME` or `NAME:PORT` is a loopback address, localhost, or the host that the service listens on.

    >>> hosts = ("127.0.0.2:80", "[::1]", "LOCALHOST:1", "127.evil.example", "127.1")
    >>> [_is_local_name(host, "127.0.0.1") for host in hosts]
    [True, True, True, False, False]
    """
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"].strip("[]").lower()
    if name in ("localhost", own.strip("[]").lower()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _check_origin(method: str, headers: Headers) -> None:
    """Refuse requests that pages of other sites make in the browser of a user (CSRF)."""
    if method in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_foreign = site is not None and site not in ("same-origin", "none")
    if site is None and origin is not None:
        is_foreign = _host_of_origin(origin) != headers.get("host", "").lower()
    if is_foreign:
        raise RefusedError(403, "this request came from a page of another site.", "Use the page of this service.")


def _host_of_origin(origin: str) -> str | None:
    """Host and port of an `Origin` header; None if it is no http(s) origin."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None
