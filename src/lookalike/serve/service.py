"""The parts of a running service: what decodes, what runs the network, and the gallery. Routes hold nothing.

It starts in a thread of its own while the socket is open already: `GET /live` answers at once, everything else says 503
until model and gallery are there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from lookalike.errors import InputError, LookalikeError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import check_fingerprint, describe_model
from lookalike.serve.batching import Batcher
from lookalike.serve.decoding import ImageDecoder
from lookalike.serve.errors import RefusedError, unavailable
from lookalike.serve.gallery_pool import GalleryPool
from lookalike.serve.settings import Settings
from lookalike.serve.telemetry import Metrics

if TYPE_CHECKING:
    from lookalike.models.runtime import Runtime

STARTING = "the service is starting: its model and gallery are being read."

log = logging.getLogger(__name__)


class Service:
    """The parts; all of them None until `load` is done.

    Args:
        settings: what to serve.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.fault: Exception | None = None
        self._pictures: ImageDecoder | None = None
        self._batcher: Batcher | None = None
        self._collection: GalleryPool | None = None
        self._loading: threading.Thread | None = None
        self._closed = False
        self._gate = threading.Lock()
        self.metrics.gauge("waiting_images", "Images that are on their way.", self._waiting)
        self.metrics.gauge("loaded", "Whether model and gallery are loaded.", lambda: float(self.is_loaded))

    @property
    def is_loaded(self) -> bool:
        return self._pictures is not None

    @property
    def is_full(self) -> bool:
        """Whether as many images are on their way as may be."""
        return self._batcher is not None and self._batcher.is_full

    @property
    def pictures(self) -> ImageDecoder:
        return self._pictures or _not_yet()

    @property
    def batcher(self) -> Batcher:
        return self._batcher or _not_yet()

    @property
    def runtime(self) -> Runtime:
        return self.batcher.runtime

    @property
    def collection(self) -> GalleryPool:
        """The gallery.

        Raises:
            RefusedError: 409, there is none; 503, not yet.
        """
        if self.settings.gallery is None:
            raise RefusedError(409, "this service has no gallery.", "Start it with one: lookalike serve GALLERY")
        return self._collection or _not_yet()

    def load(self, runtime: Runtime | None = None) -> None:
        """Read the model and open the gallery; some seconds.

        Args:
            runtime: runs the network; None: made of the settings' model, or the one that the gallery remembers.

        Raises:
            InputError: no such model or gallery, a damaged one, or one that does not fit the other.
        """
        settings = self.settings
        own = runtime or _runtime(settings)
        collection = None
        try:
            if settings.gallery is not None:
                _check_gallery(settings.gallery, own)
                collection = GalleryPool(
                    settings.gallery,
                    own.fingerprint,
                    own.dim,
                    most=settings.max_waiting,
                    writes=settings.writing != "off",
                    most_bytes=settings.max_answer_bytes,
                )
                collection.warm_up()
            own.run(np.zeros((1, own.size, own.size, 3), np.uint8))
        except BaseException:
            if collection is not None:
                collection.close()
            if runtime is None:
                own.close()
            raise
        with self._gate:
            self._batcher = Batcher(own, settings.batch, settings.max_waiting, self.metrics.batch)
            self._collection = collection
            self._pictures = ImageDecoder(own.size, own.crop_mode, settings.max_pixels)
            if not self._closed:
                return
        self.close()

    def load_behind(self, failed: Callable[[], None]) -> None:
        """Load in a thread. When it goes wrong, `fault` is set and `failed` is called there."""

        def work() -> None:
            try:
                self.load()
            except Exception as error:
                self.fault = error
                if not isinstance(error, LookalikeError | RefusedError):
                    log.exception("the service could not start")
                failed()

        self._loading = threading.Thread(target=work, name="lookalike-loading", daemon=True)
        self._loading.start()

    def close(self) -> None:
        """Finish what was accepted, and let everything go."""
        with self._gate:
            self._closed = True
            pictures, batcher, collection = self._pictures, self._batcher, self._collection
            self._pictures = self._batcher = self._collection = None
        if pictures is not None:
            pictures.close()
        if batcher is not None:
            batcher.close()
        if collection is not None:
            collection.close()

    async def reasons(self) -> list[str]:
        """Why it is not ready; an empty list when it is."""
        if self.fault is not None:
            return ["the service could not start."]
        if not self.is_loaded:
            return [STARTING]
        found = list(await self.collection.reasons()) if self.settings.gallery is not None else []
        if self.batcher.failing:
            found += await self._runtime_reasons()
        return found

    async def _runtime_reasons(self) -> list[str]:
        """Try it with one black picture: it may be well again."""
        size = self.runtime.size
        try:
            await self.batcher.run([np.zeros((size, size, 3), np.uint8)])
        except RefusedError as error:
            return [str(error)]
        return []

    def _waiting(self) -> float:
        return 0.0 if self._batcher is None else float(self._batcher.waiting)


def _runtime(settings: Settings) -> Runtime:
    model = settings.model
    if model is None and settings.gallery is not None:
        with Gallery.open(settings.gallery) as gallery:
            about, place = gallery.about, str(gallery.location)
        if not about.model:
            raise InputError(
                f"{place}: the location of its model is not known.", f"Give {describe_model(about)}: --model"
            )
        model = about.model
    from lookalike.models.runtime import create_runtime

    return create_runtime(model or "default", settings.runtime)


def _check_gallery(target: str, runtime: Runtime) -> None:
    """Refuse a gallery that cannot be opened, or of another model."""
    with Gallery.open(target) as gallery:
        check_fingerprint(runtime.fingerprint, gallery.about, str(gallery.location))


def _not_yet() -> NoReturn:
    raise unavailable(STARTING)
