"""Errors over HTTP: all of them have one JSON shape, and none of them shows paths, keys or tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lookalike.serve.schemas import ErrorResponse, error_body

MAX_NAME = 80  # characters of a client's own text that are repeated in a message

log = logging.getLogger(__name__)

DESCRIPTIONS = {
    400: "The request is malformed.",
    401: "The API key is missing or wrong.",
    403: "This key does not allow the request, or the service does not allow it at all.",
    404: "Not found.",
    408: "The request did not arrive in time.",
    409: "The service has no gallery, its model has no classes or no text tower, or no item has a label.",
    413: "The body is too large; `limit` names the limit.",
    415: "The body is not an image.",
    422: "A parameter or an image is invalid; the message names it.",
    503: "The service is overloaded or not ready; `Retry-After` says when to try again.",
}

# For the OpenAPI description of routes. 400 is left out: the server answers malformed HTTP before any route.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in DESCRIPTIONS.items() if status != 400
}


class RefusedError(Exception):
    """Ends a request with an error response.

    Args:
        status: HTTP status, 400 to 599.
        message: what was wrong. The client reads it: it must hold no path, key or traceback.
        remedy: what to do about it.
        limit: name of the setting that was exceeded; `value` is its value.
        retry_after: seconds after which the request may succeed.
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
        self.body: Mapping[str, Any] = error_body(message, remedy, limit, value)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class GalleryFailedError(RefusedError):
    """The gallery cannot be used at the moment: 503. `detail` is the full message, for the log only."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(503, reason, "Try again later; GET /ready says when.", retry_after=5)


def overloaded(limit: str, value: float) -> RefusedError:
    """503: too many requests are waiting."""
    return RefusedError(
        503, "the service is overloaded.", "Try again a little later.", limit=limit, value=value, retry_after=1
    )


def unavailable(reason: str) -> RefusedError:
    """503: a part of the service does not work now, or not yet."""
    return RefusedError(503, reason, "Try again later; GET /ready says when.", retry_after=5)


def client_disconnected() -> RefusedError:
    """499: the client closed the connection. Nobody reads the response; the access log does."""
    return RefusedError(499, "the client disconnected.")


def add_error_handlers(app: FastAPI) -> None:
    """Make an application answer every error in the shape of `ErrorResponse`."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    if isinstance(error, GalleryFailedError):
        log.warning("the gallery failed: %s", error.detail)
    return JSONResponse(error.body, error.status, error.headers)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])[:MAX_NAME]
    return JSONResponse(error_body(f"{where}: {first['msg']}.", "See /docs for the parameters."), 422)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = DESCRIPTIONS.get(error.status_code) or f"{HTTPStatus(error.status_code).phrase}."
    return JSONResponse(error_body(text, "See /docs for the routes."), error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body("internal error; the service's log has the details.", "Tell the operator."), 500)
