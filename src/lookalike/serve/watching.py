"""Every request is counted, and has a line in the log: what was asked of which route, by whom, how it ended. Only
thumbnails that were shown have none.

The line has the route's pattern and no path, query, header or body: no key, file name or label is ever in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.serve.metrics import Metrics
from lookalike.serve.refusals import RefusedError

METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
OTHER = "other"
THUMBNAIL = (
    "/v1/items/{id}/thumbnail"  # a page asks for dozens with each answer: counted, and no line where all is well
)

log = logging.getLogger("lookalike.serve.access")


class Watching:
    """An application with a watcher.

    Args:
        app: what answers.
        metrics: are told of every request.
        routes: patterns by which a request that was refused before it came to a route is known.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[str] = ()) -> None:
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except asyncio.CancelledError:  # the time to finish is over
            if status:
                raise
            ended = RefusedError(503, "the service has ended.", "Try again.", retry_after=5)
            await JSONResponse(ended.body, ended.status, ended.headers)(scope, receive, seen)
        finally:
            self._tell(scope, status, time.perf_counter() - start)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in self._routes else OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._metrics.request(method, route, status, seconds)
        if log.isEnabledFor(logging.INFO) and not (route == THUMBNAIL and status in (200, 304)):
            client = scope.get("client")
            log.info(
                json.dumps(
                    {
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "method": method,
                        "route": route,
                        "status": status,
                        "ms": round(1000 * seconds, 1),
                        "client": client[0] if client else "",
                    }
                )
            )
