"""Every request is counted, and has a line in the log: what was asked of which route, by whom, how it ended. Only
thumbnails that were shown have none.

The line has the route's pattern and no path, query, header or body: no key, file name or label is ever in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.serve.errors import RefusedError

METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})


OTHER = "other"


THUMBNAIL = (
    "/v1/items/{id}/thumbnail"  # a page asks for dozens with each answer: counted, and no line where all is well
)


log = logging.getLogger("lookalike.serve.access")


class Telemetry:
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


# What Prometheus is told: requests by route and status, their seconds, the batches, what waits, what is ready.

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lookalike_requests_total", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "lookalike_request_seconds",
            "From the request's headers to the answer's last byte.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "lookalike_batch_images", "Images in a turn of the runtime.", buckets=SIZES, registry=self._registry
        )
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when it is told."""
        Gauge(f"lookalike_{name}", help, registry=self._registry).set_function(value)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the pattern of its path, so that there are few of them."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, images: int) -> None:
        """The runtime had a turn with so many images."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it; of type `CONTENT_TYPE`."""
        return generate_latest(self._registry)
