"""What the service does not do, and says so: an answer with a status, what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookalike.serve.schemas import fault


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP, 400 to 599.
        message: what was wrong. It holds no path, key or traceback.
        remedy: what to do about it.
        limit: the setting that was passed, and `value`: what it is.
        retry_after: seconds after which it may go well.
    """

    def __init__(
        self,
        status: int,
        message: str,
        remedy: str = "",
        *,
        limit: str | None = None,
        value: float | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: Mapping[str, Any] = fault(message, remedy, limit, value)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def overloaded(limit: str, value: float) -> RefusedError:
    """Too much waits already."""
    return RefusedError(503, "too much to do at the moment.", "Try again a little later.",
                   limit=limit, value=value, retry_after=1)  # fmt: skip


def unavailable(reason: str) -> RefusedError:
    """A part that is needed does not work now, or not yet."""
    return RefusedError(503, reason, "Try again later; GET /ready says when.", retry_after=5)
