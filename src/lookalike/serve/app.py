"""The application: routes on a service, behind the guard, under the watcher.

    ASGI server ─▶ Watching (figures, log) ─▶ Guard (keys, limits) ─▶ routes ─▶ Service (pictures ▸ batcher, collection)

The watcher is outermost, so that what the guard refuses is counted, too.
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
from lookalike.serve.errors import add_handlers
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings
from lookalike.serve.telemetry import Telemetry

if TYPE_CHECKING:
    from lookalike.models.runtime import Runtime

CLOSING = 5.0  # seconds, after those for requests, for what they started: a picture may take long to decode

log = logging.getLogger(__name__)

DESCRIPTION = """What a picture is and what looks like it. Images go in as they are, as a body or as a form. Every error
has the shape `{"error": {"message", "remedy", "limit"?}}`. Where keys are asked for: `Authorization: Bearer KEY`."""


def create_app(settings: Settings, runtime: Runtime | None = None) -> ASGIApp:
    """The service as an ASGI application.

    Args:
        settings: what to serve, to whom.
        runtime: runs the network, and is closed with the application. It and the gallery are then ready when this
            returns. None: made when the application starts, of the settings' model, while it says 503 to all but /live.

    Returns:
        The application. It ends what it started when its lifespan ends.

    Raises:
        InputError: a gallery that cannot be used or is of another model than the runtime.
    """
    service = Service(settings)
    if runtime is not None:
        service.load(runtime)
    return application(service)


def application(service: Service, failed: Callable[[], None] = lambda: None) -> ASGIApp:
    """The application of a service; `failed` is called in another thread when it cannot be loaded."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        if not service.is_loaded:
            service.load_behind(failed)
        yield
        closing = threading.Thread(target=service.close, name="lookalike-closing", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSING)
        if closing.is_alive():
            log.warning("something is not finished after %.0f s more, and is left.", CLOSING)

    app = FastAPI(
        title="Lookalike",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    add_handlers(app)
    _describe_keys(app)
    routers = (
        routes_meta.state_routes(service),
        routes_inference.routes(service),
        routes_items.routes(service),
        routes_meta.page_routes(),
    )
    for router in routers:
        app.include_router(router)
    paths = [getattr(route, "path", "") for router in routers for route in router.routes]
    fixed = [path for path in paths if "{" not in path]
    return Telemetry(AdmissionGuard(app, service.settings, lambda: service.is_full), service.metrics, fixed)


def _describe_keys(app: FastAPI) -> None:
    """Say in OpenAPI that a key may be asked for; whether it is, `GET /v1/about` says."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        tree = plain()
        tree["components"].setdefault("securitySchemes", {"key": {"type": "http", "scheme": "bearer"}})
        tree["security"] = [{"key": []}, {}]
        return tree

    app.openapi = described  # type: ignore[method-assign]
