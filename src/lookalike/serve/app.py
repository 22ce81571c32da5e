"""The ASGI application: middleware around the routes of a service.

    server -> Telemetry (metrics, log) -> AdmissionGuard (keys, limits) -> routes -> Service (decoder, batcher, gallery)

Telemetry is outermost, so that it counts refused requests, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from lookalike import __version__
from lookalike.serve import routes_inference, routes_items, routes_meta
from lookalike.serve.admission import AdmissionGuard
from lookalike.serve.errors import add_error_handlers
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings
from lookalike.serve.telemetry import Telemetry

if TYPE_CHECKING:
    from lookalike.models.runtime import Runtime

CLOSE_SECONDS = 5.0  # for work that goes on in threads after the last request, such as decoding

log = logging.getLogger(__name__)

DESCRIPTION = """Classify images and search a gallery for similar ones. An image is the body of a request, or a file of
a form (field `image`). Every error has the shape `{"error": {"message", "remedy", "limit"?}}`. If the service requires
a key, send it as `Authorization: Bearer KEY`."""


def create_app(settings: Settings, runtime: Runtime | None = None) -> ASGIApp:
    """Create the service as an ASGI application, which closes it at the end of its lifespan.

    Args:
        settings: what to serve.
        runtime: the network; it is closed with the application. The service is then loaded when this returns. None:
            the settings' model, loaded when the application starts; until then requests are answered 503.

    Returns:
        The application.

    Raises:
        InputError: the gallery cannot be used, or another model made its vectors.
    """
    service = Service(settings)
    if runtime is not None:
        service.load(runtime)
    return create_service_app(service)


def create_service_app(service: Service, on_load_failure: Callable[[], None] = lambda: None) -> ASGIApp:
    """Create the application of a service. `on_load_failure` is called in another thread if it cannot be loaded."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        if not service.is_loaded:
            service.start_loading(on_load_failure)
        yield
        closing = threading.Thread(target=service.close, name="lookalike-closing", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)
        if closing.is_alive():
            log.warning("some work was not finished within %.0f s, and is abandoned.", CLOSE_SECONDS)

    app = FastAPI(
        title="Lookalike",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's pages load scripts from a CDN; routes_meta has a page of our own
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    add_error_handlers(app)
    _describe_keys(app)
    routers = (
        routes_meta.create_router(service),
        routes_inference.create_router(service),
        routes_items.create_router(service),
        routes_meta.create_page_router(),
    )
    for router in routers:
        app.include_router(router)
    paths = [getattr(route, "path", "") for router in routers for route in router.routes]
    guard = AdmissionGuard(app, service.settings, lambda: service.is_full)
    return Telemetry(guard, service.metrics, [path for path in paths if "{" not in path])


def _describe_keys(app: FastAPI) -> None:
    """Add to the OpenAPI description that a key may be required; `GET /v1/about` says whether it is."""
    openapi = app.openapi

    def openapi_with_keys() -> dict[str, Any]:
        tree = openapi()
        tree["components"].setdefault("securitySchemes", {"key": {"type": "http", "scheme": "bearer"}})
        tree["security"] = [{"key": []}, {}]
        return tree

    app.openapi = openapi_with_keys  # type: ignore[method-assign]
