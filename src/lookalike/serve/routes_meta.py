"""The page and its files, out of memory: what is not one of them when the service starts cannot be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Depends, Request, Response

from lookalike import __version__
from lookalike.serve import schemas
from lookalike.serve.errors import FAULTS, RefusedError
from lookalike.serve.parameters import check_parameters
from lookalike.serve.revalidation import revalidated, tag_of
from lookalike.serve.service import Service
from lookalike.serve.telemetry import CONTENT_TYPE

START = "index.html"


TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    data: bytes
    type: str
    tag: str


def files() -> dict[str, PageFile]:
    """The files of the page, by name; all of them in one folder of the package."""
    found: dict[str, PageFile] = {}
    for path in (resources.files("lookalike.serve") / "page").iterdir():
        kind = TYPES.get(f".{path.name.rpartition('.')[2]}")
        if kind is not None and path.is_file():
            data = path.read_bytes()
            found[path.name] = PageFile(data, kind, tag_of(data))
    return found


def page_routes() -> APIRouter:
    """`/` and `/page/NAME`."""
    router = APIRouter(include_in_schema=False)
    known = files()

    def answer(name: str, request: Request) -> Response:
        file = known.get(name)
        if file is None:
            raise RefusedError(404, "there is nothing here.")
        return revalidated(request, file.data, file.tag, file.type, "no-cache")

    @router.get("/")
    async def start(request: Request) -> Response:
        return answer(START, request)

    @router.get("/page/{name}")
    async def page(name: str, request: Request) -> Response:
        return answer(name, request)

    return router


# Routes that say how the service is: alive, ready, its figures, and what it has and allows.

MOST_LABELS = 1000


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
)


def state_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(dependencies=[Depends(check_parameters)])

    @router.get("/live", summary="Whether it runs")
    async def live() -> schemas.StateResponse:
        """It answers, so it runs."""
        return schemas.StateResponse(status="live")

    @router.get("/ready", responses={503: {"model": schemas.StateResponse}}, summary="Whether it can serve")
    async def ready(response: Response) -> schemas.StateResponse:
        """Whether model, gallery and disk are as they should be; why not, where they are not."""
        reasons = await service.reasons()
        if not reasons:
            return schemas.StateResponse(status="ready")
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return schemas.StateResponse(status="not ready", reasons=reasons)

    @router.get("/metrics", response_class=Response, responses=FAULTS, summary="Figures for Prometheus")
    async def metrics() -> Response:
        """Requests, seconds, batches, what waits, memory: in Prometheus's text format."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/v1/about", responses=FAULTS, summary="What it has and allows")
    async def about() -> schemas.InfoResponse:
        """The model, the gallery and its labels, the limits of a request, and which keys are asked for."""
        settings, runtime = service.settings, service.runtime
        gallery = None
        if settings.gallery is not None:
            rows, made, labels = await service.collection.facts(MOST_LABELS)
            counted = [schemas.Counted(label=label, count=count) for label, count in labels]
            gallery = schemas.GalleryFacts(
                rows=rows,
                threshold=made.own_threshold,
                calibrated_on=made.calibrated_on,
                model_threshold=made.threshold,
                model_calibrated_on=made.model_calibrated_on,
                labels=counted,
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
            ),
            gallery=gallery,
            limits={name: getattr(settings, name) for name in LIMITS},
            keys=schemas.KeysInfo(read=settings.read_key is not None, write=settings.writing),
        )

    return router
