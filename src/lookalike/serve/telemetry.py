"""Metrics for Prometheus, and an access log with one line of JSON for each request.

A log line holds the route's pattern, and no path, query, header or body: keys, file names and labels never get there.
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

CONTENT_TYPE = CONTENT_TYPE_LATEST
DURATION_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)  # images
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
OTHER = "other"  # a method or route that the service does not have
THUMBNAIL = "/v1/items/{id}/thumbnail"  # the page asks for dozens at once: successful requests are not logged

log = logging.getLogger("lookalike.serve.access")


class Telemetry:
    """ASGI middleware that counts and logs every request.

    Args:
        app: answers the requests.
        metrics: counts them.
        routes: paths without parameters, to name requests that were refused before they reached a route.
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

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # the server stops, and the request has used up the drain time
            if status:
                raise
            error = RefusedError(503, "the service has stopped.", "Try again.", retry_after=5)
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_and_note)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in self._routes else OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._metrics.record_request(method, route, status, seconds)
        if log.isEnabledFor(logging.INFO) and not (route == THUMBNAIL and status in (200, 304)):
            client = scope.get("client")
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "method": method,
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "client": client[0] if client else "",
            }
            log.info(json.dumps(line))


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lookalike_requests_total", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "lookalike_request_seconds",
            "Duration of requests, from their headers to the last byte of the response.",
            ("route",),
            buckets=DURATION_BUCKETS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "lookalike_batch_images",
            "Images that went through the network together.",
            buckets=BATCH_BUCKETS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def add_gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge `lookalike_NAME` whose value is computed when the metrics are read."""
        Gauge(f"lookalike_{name}", help, registry=self._registry).set_function(value)

    def record_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is a pattern, not a path, so that the number of series is bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def record_batch(self, images: int) -> None:
        """Count a batch of the network."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus, of type `CONTENT_TYPE`."""
        return generate_latest(self._registry)
