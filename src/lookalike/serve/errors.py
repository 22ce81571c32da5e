"""What goes wrong, as JSON: one shape for every error, whoever found it, with nothing of the inside in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lookalike.serve.schemas import ErrorResponse, fault

log = logging.getLogger(__name__)


WORDS = {
    400: "The request is broken.",
    401: "A key is needed, or it is wrong.",
    403: "This key does not open this, or it is switched off.",
    404: "There is no such thing.",
    408: "The request did not arrive in time.",
    409: "This service has no gallery, or no classes.",
    413: "The body is too large; the limit is named.",
    415: "The body is no image.",
    422: "A value or an image cannot be used; the message says which.",
    503: "Too much to do, or not ready; Retry-After says when to come again.",
}


FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words} for status, words in WORDS.items() if status != 400
}


def add_handlers(app: FastAPI) -> None:
    """Let an application answer every error in the one shape."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    if isinstance(error, FailingError):
        log.warning("the gallery failed: %s", error.detail)
    return _answer(error.status, error.body, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])[:80]
    return _answer(422, fault(f"{where}: {first['msg']}.", "GET /openapi.json says what may be asked."))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = WORDS.get(error.status_code) or f"{HTTPStatus(error.status_code).phrase}."
    return _answer(error.status_code, fault(words, "GET /openapi.json says what there is."), error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    return _answer(500, fault("something went wrong inside; it is in the service's log.", "Tell who runs it."))


def _answer(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body, status, headers=dict(headers or {}))


# What the service does not do, and says so: an answer with a status, what was wrong and what to do.


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


class FailingError(RefusedError):
    """The gallery cannot be used now: 503. `detail` is the whole message, for the log and not for who asked."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        RefusedError.__init__(self, 503, reason, "Try again later; GET /ready says when.", retry_after=5)
