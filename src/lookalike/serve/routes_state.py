"""Routes that say how the service is: alive, ready, its figures, and what it has and allows."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from lookalike import __version__
from lookalike.serve import schemas
from lookalike.serve.faults import FAULTS
from lookalike.serve.metrics import CONTENT_TYPE
from lookalike.serve.parameters import check_parameters
from lookalike.serve.service import Service

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


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(dependencies=[Depends(check_parameters)])

    @router.get("/live", summary="Whether it runs")
    async def live() -> schemas.State:
        """It answers, so it runs."""
        return schemas.State(status="live")

    @router.get("/ready", responses={503: {"model": schemas.State}}, summary="Whether it can serve")
    async def ready(response: Response) -> schemas.State:
        """Whether model, gallery and disk are as they should be; why not, where they are not."""
        reasons = await service.reasons()
        if not reasons:
            return schemas.State(status="ready")
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return schemas.State(status="not ready", reasons=reasons)

    @router.get("/metrics", response_class=Response, responses=FAULTS, summary="Figures for Prometheus")
    async def metrics() -> Response:
        """Requests, seconds, batches, what waits, memory: in Prometheus's text format."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/v1/about", responses=FAULTS, summary="What it has and allows")
    async def about() -> schemas.About:
        """The model, the gallery and its labels, the limits of a request, and which keys are asked for."""
        settings, engine = service.settings, service.engine
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
        return schemas.About(
            name="lookalike",
            version=__version__,
            model=schemas.Model(
                name=engine.name,
                fingerprint=engine.fingerprint,
                classes=len(engine.class_names),
                size=engine.size,
                dim=engine.dim,
                unknown_threshold=engine.unknown_threshold,
            ),
            gallery=gallery,
            limits={name: getattr(settings, name) for name in LIMITS},
            keys=schemas.Keys(read=settings.read_key is not None, write=settings.writing),
        )

    return router
