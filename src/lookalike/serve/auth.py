"""API keys: which permission a request needs, and whether its key grants it."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from pydantic import SecretStr

from lookalike.serve.errors import RefusedError
from lookalike.serve.settings import Settings

Permission = Literal["open", "read", "write"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/", "/live", "/ready", "/favicon.ico", "/docs", "/openapi.json"})
OPEN_PREFIX = "/page/"
ITEMS = "/v1/items"


def permission_for(method: str, path: str) -> Permission:
    """The permission that a request needs: none for the pages and the state, the write key to change items, else the
    read key.

    >>> permission_for("GET", "/page/app.js"), permission_for("POST", "/v1/search"), permission_for("POST", "/v1/items")
    ('open', 'read', 'write')
    """
    if method in SAFE_METHODS:
        return "open" if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) else "read"
    return "write" if path == ITEMS or path.startswith(f"{ITEMS}/") else "read"


class ApiKeys:
    """The keys of a service. Only their digests are kept, and they are compared in constant time.

    Args:
        settings: holds the keys, and says who may write.
    """

    def __init__(self, settings: Settings) -> None:
        self._read, self._write = _digest_of(settings.read_key), _digest_of(settings.write_key)
        self._writing = settings.writing

    def check(self, permission: Permission, authorization: str | None) -> None:
        """Check that a request has the permission it needs.

        Args:
            permission: from `permission_for`.
            authorization: the request's header of this name.

        Raises:
            RefusedError: 401, the key is missing or unknown; 403, it does not grant this, or nobody may write.
        """
        if permission == "open":
            return
        given = _digest_of_header(authorization)
        is_reader, is_writer = _is_same(given, self._read), _is_same(given, self._write)
        if permission == "write":
            if self._writing == "off":
                raise RefusedError(403, "this service is read-only.", "Start it with a write key to change items.")
            if self._writing == "key" and not is_writer:
                if is_reader:
                    raise RefusedError(403, "the read key does not allow changes.", "Use the write key.")
                raise _unauthorized("write", given is not None)
        elif self._read is not None and not (is_reader or is_writer):
            raise _unauthorized("read", given is not None)


def _unauthorized(kind: str, is_given: bool) -> RefusedError:
    message = "the key is wrong." if is_given else f"a {kind} key is required."
    error = RefusedError(401, message, f"Send the {kind} key: Authorization: Bearer KEY")
    error.headers["WWW-Authenticate"] = "Bearer"
    return error


def _digest_of(key: SecretStr | None) -> bytes | None:
    return None if key is None else hashlib.sha256(key.get_secret_value().encode()).digest()


def _digest_of_header(authorization: str | None) -> bytes | None:
    """The digest of the key in an Authorization header; None without a bearer key."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()


def _is_same(given: bytes | None, key: bytes | None) -> bool:
    """Compare two digests in constant time, also if one is missing."""
    same = hmac.compare_digest(given or bytes(32), key or bytes([1] * 32))
    return same and given is not None and key is not None
