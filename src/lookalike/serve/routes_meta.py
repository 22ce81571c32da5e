"""Routes that describe the service (live, ready, metrics, about), and the files of its pages.

The pages are read into memory once: only files that are in the package when the service starts can be requested.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Depends, Request, Response

from lookalike import __version__
from lookalike.serve import schemas
from lookalike.serve.errors import ERROR_RESPONSES, RefusedError
from lookalike.serve.requests import check_parameters, conditional_response, etag_of
from lookalike.serve.service import Service
from lookalike.serve.telemetry import CONTENT_TYPE

MAX_LABELS = 1000  # in `GET /v1/about`
LIMITS = (
    "max_body_bytes",
    "max_pixels",
    "max_images",
    "max_waiting",
    "max_requests",
    "max_connections",
    "max_connections_per_address",
    "max_held_bytes",
    "max_answers",
    "max_answer_bytes",
    "receive_seconds",
    "send_seconds",
)  # of the settings, that clients may know
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def create_router(service: Service) -> APIRouter:
    """The routes of a service that describe it."""
    router = APIRouter(dependencies=[Depends(check_parameters)])

    @router.get("/live", summary="Is it running?")
    async def live() -> schemas.StateResponse:
        """Answer, while the process runs."""
        return schemas.StateResponse(status="live")

    @router.get("/ready", responses={503: {"model": schemas.StateResponse}}, summary="Is it ready?")
    async def ready(response: Response) -> schemas.StateResponse:
        """Check the model, the gallery and its disk, and return the reasons if the service is not ready."""
        reasons = await service.reasons()
        if not reasons:
            return schemas.StateResponse(status="ready")
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return schemas.StateResponse(status="not ready", reasons=reasons)

    @router.get("/metrics", response_class=Response, responses=ERROR_RESPONSES, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        """Return requests, durations, batches, waiting images and memory in the text format of Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/v1/about", responses=ERROR_RESPONSES, summary="Describe the service")
    async def about() -> schemas.InfoResponse:
        """Return the model, the gallery with its labels, the limits of requests, and which keys are required."""
        settings, runtime = service.settings, service.runtime
        gallery = None
        if settings.gallery is not None:
            items, info, labels = await service.gallery.summary(MAX_LABELS)
            gallery = schemas.GalleryResponse(
                items=items,
                threshold=info.own_threshold,
                calibrated_on=info.calibrated_on,
                model_threshold=info.threshold,
                model_calibrated_on=info.model_calibrated_on,
                labels=[schemas.LabelCount(label=label, count=count) for label, count in labels],
            )
        return schemas.InfoResponse(
            name="lookalike",
            version=__version__,
            model=schemas.ModelResponse(
                name=runtime.name,
                fingerprint=runtime.fingerprint,
                classes=len(runtime.class_names),
                size=runtime.size,
                dim=runtime.dim,
                unknown_threshold=runtime.unknown_threshold,
                text=runtime.has_text,
            ),
            gallery=gallery,
            limits={name: getattr(settings, name) for name in LIMITS},
            keys=schemas.KeysResponse(read=settings.read_key is not None, write=settings.writing),
        )

    return router


@dataclass(frozen=True)
class PageFile:
    """A file of the pages."""

    data: bytes
    media_type: str
    etag: str


def create_page_router() -> APIRouter:
    """The routes of the pages: `/`, `/docs`, and `/page/NAME` for their files."""
    router = APIRouter(include_in_schema=False)
    files = _read_page_files()

    def respond(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise RefusedError(404, "there is no such file.")
        return conditional_response(request, file.data, file.etag, file.media_type, "no-cache")

    @router.get("/")
    async def start(request: Request) -> Response:
        return respond(request, "index.html")

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return respond(request, "docs.html")

    @router.get("/page/{name}")
    async def file(request: Request, name: str) -> Response:
        return respond(request, name)

    return router


def _read_page_files() -> dict[str, PageFile]:
    """The files of the package's folder `page`, by name."""
    files: dict[str, PageFile] = {}
    for path in (resources.files("lookalike.serve") / "page").iterdir():
        media_type = MEDIA_TYPES.get(f".{path.name.rpartition('.')[2]}")
        if media_type is not None and path.is_file():
            data = path.read_bytes()
            files[path.name] = PageFile(data, media_type, etag_of(data))
    return files
