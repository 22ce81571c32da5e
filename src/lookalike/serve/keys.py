"""Who may do what: three classes of routes, and the keys that open them."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from pydantic import SecretStr

from lookalike.serve.refusals import RefusedError
from lookalike.serve.settings import Settings

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


class Keys:
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
