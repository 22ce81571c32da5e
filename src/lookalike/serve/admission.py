"""The guard before the routes: what may come in at all, from whom, how large, how fast, and how much at once.

It knows nothing of what routes do. Bodies are received here, whole, before a route sees the request: so a slow or a
large one costs a little memory and no thread, and is cut off. Answers leave with headers that keep browsers from
running or embedding anything that is not ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.serve.errors import RefusedError, overloaded
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


HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@%,\\]+)(:[0-9]{1,5})?", re.IGNORECASE)  # of RFC 9110, 7.2


class AdmissionGuard:
    """An application with a guard before it.

    Args:
        app: what answers those that come through.
        settings: keys and limits.
        is_full: whether there is no room for another image, as the routes would find out after a body was received.
    """

    def __init__(self, app: ASGIApp, settings: Settings, is_full: Callable[[], bool] = lambda: False) -> None:
        self._app, self._settings, self._is_full = app, settings, is_full
        self._keys = ApiKeys(settings)
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
                headers.setdefault("Cache-Control", "no-store")  # but for what is revalidated
            await send(message)

        headers = Headers(scope=scope)
        try:
            right = right_for(scope["method"], scope["path"])
            _check_host(headers, self._settings)
            _check_origin(scope["method"], headers)
            self._keys.check(right, headers.get("authorization"))
            answer = self._app if right == "open" else self._let_in
            if scope["method"] == "HEAD":
                await _without_body(answer, scope, receive, headed)
            else:
                await answer(scope, receive, headed)
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


async def _without_body(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD as GET would be: the same status and headers, and nothing after them."""

    async def headers_only(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    asked = {**scope, "method": "GET"}
    try:
        await answer(asked, receive, headers_only)
    finally:
        if "route" in asked:
            scope["route"] = asked["route"]  # for the watcher


def _check_host(headers: Headers, settings: Settings) -> None:
    """On loopback, refuse names that are not this machine's: a page elsewhere may have given its name our address."""
    if settings.is_loopback and not _is_own(headers.get("host", ""), settings.host):
        raise RefusedError(403, "this name is not served.", "Use the address that the service printed.")


def _is_own(host: str, own: str) -> bool:
    """Whether `NAME`, `NAME:PORT` means this machine alone: a loopback address, localhost, or the service's own host.

    >>> [_is_own(host, "127.0.0.1") for host in ("127.0.0.2:80", "[::1]", "LOCALHOST:1", "127.evil.example", "127.1")]
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
    """Refuse what pages of other sites send with the browser of somebody who may come in."""
    if method in HARMLESS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    elsewhere = site is not None and site not in ("same-origin", "none")
    if site is None and origin is not None:
        elsewhere = _netloc(origin) != headers.get("host", "").lower()
    if elsewhere:
        raise RefusedError(403, "this was sent by a page of another site.", "Use the page of this service.")


def _netloc(origin: str) -> str | None:
    """Host and port of an `Origin`; None where it is none of the web's."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None


# Who may do what: three classes of routes, and the keys that open them.

Right = Literal["open", "read", "write"]


OPEN = frozenset({"/", "/live", "/ready", "/favicon.ico"})


PAGE = "/page/"


ITEMS = "/v1/items"


HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


def right_for(method: str, path: str) -> Right:
    """What a request needs: nothing for the page and the states, the write key to add and remove, else the read key.

    >>> right_for("GET", "/page/app.js"), right_for("POST", "/v1/search"), right_for("DELETE", "/v1/items/12")
    ('open', 'read', 'write')
    """
    if method in HARMLESS and (path in OPEN or path.startswith(PAGE)):
        return "open"
    if method not in HARMLESS and (path == ITEMS or path.startswith(f"{ITEMS}/")):
        return "write"
    return "read"


class ApiKeys:
    """The keys of a service. They are compared by their digests, in a time that says nothing of them.

    Args:
        settings: which there are.
    """

    def __init__(self, settings: Settings) -> None:
        self._read, self._write = _digest(settings.read_key), _digest(settings.write_key)
        self._writing = settings.writing

    def check(self, right: Right, authorization: str | None) -> None:
        """See that a request may have what it needs.

        Args:
            right: that.
            authorization: the header of this name.

        Raises:
            RefusedError: 401, a key is missing or is none of ours; 403, it does not open this, or nobody may write.
        """
        if right == "open":
            return
        shown = _shown(authorization)
        reads, writes = _same(shown, self._read), _same(shown, self._write)
        if right == "write":
            if self._writing == "off":
                raise RefusedError(403, "nothing is added or removed here.", "Start the service with a write key.")
            if self._writing == "key" and not writes:
                if reads:
                    raise RefusedError(403, "this key only reads.", "Use the write key.")
                raise _unauthorised("write", shown is not None)
        elif self._read is not None and not (reads or writes):
            raise _unauthorised("read", shown is not None)


def _unauthorised(kind: str, shown: bool) -> RefusedError:
    wrong = "this key is not known here." if shown else f"a {kind} key is needed."
    refused = RefusedError(401, wrong, f"Send the {kind} key: Authorization: Bearer KEY")
    refused.headers["WWW-Authenticate"] = "Bearer"
    return refused


def _shown(authorization: str | None) -> bytes | None:
    """The digest of the key in the header; None where there is none."""
    kind, _, key = (authorization or "").partition(" ")
    return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest() if kind.lower() == "bearer" else None


def _digest(key: SecretStr | None) -> bytes | None:
    return None if key is None else hashlib.sha256(key.get_secret_value().encode()).digest()


def _same(shown: bytes | None, key: bytes | None) -> bool:
    """Whether both are the same key. A missing one takes as long as a wrong one."""
    alike = hmac.compare_digest(shown or bytes(32), key or bytes([1] * 32))
    return alike and shown is not None and key is not None
