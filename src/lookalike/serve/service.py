"""The parts of a running service: the decoder, the network with its batcher, and the gallery.

They are loaded in a thread while the socket is open already: `GET /live` answers at once, everything else answers 503
until the model and the gallery are loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError, LookalikeError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import Box, describe_model
from lookalike.models.text import NoTextError
from lookalike.serve.batching import Batcher
from lookalike.serve.decoding import ImageDecoder
from lookalike.serve.errors import RefusedError, unavailable
from lookalike.serve.gallery_pool import GalleryPool
from lookalike.serve.settings import Settings
from lookalike.serve.telemetry import Metrics

if TYPE_CHECKING:
    from lookalike.models.runtime import Outputs, Runtime

RELOAD_SECONDS = 30.0  # between two attempts to load the new model of a gallery
STARTING = "the service is starting: it loads its model and gallery."

log = logging.getLogger(__name__)


class Service:
    """The parts of a service. They exist once `load` is done.

    Args:
        settings: what to serve.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.load_error: Exception | None = None
        self._decoder: ImageDecoder | None = None
        self._batcher: Batcher | None = None
        self._gallery: GalleryPool | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._reloaded = -RELOAD_SECONDS  # when the model was last loaded again
        self.metrics.add_gauge("waiting_images", "Images in flight.", self._count_waiting)
        self.metrics.add_gauge("loaded", "Whether model and gallery are loaded.", lambda: float(self.is_loaded))

    @property
    def is_loaded(self) -> bool:
        return self._decoder is not None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another image."""
        return self._batcher is not None and self._batcher.is_full

    @property
    def decoder(self) -> ImageDecoder:
        return self._decoder or _raise_starting()

    @property
    def batcher(self) -> Batcher:
        return self._batcher or _raise_starting()

    @property
    def runtime(self) -> Runtime:
        return self.batcher.runtime

    @property
    def gallery(self) -> GalleryPool:
        """The gallery.

        Raises:
            RefusedError: 409, the service has none; 503, it is not loaded yet.
        """
        if self.settings.gallery is None:
            raise RefusedError(409, "this service has no gallery.", "Start it with one: lookalike serve GALLERY")
        return self._gallery or _raise_starting()

    async def run(self, files: Sequence[bytes], box: Box | None = None) -> Outputs:
        """Decode image files and run the network on them.

        Args:
            files: the images.
            box: use only this part of the first image; see `ImageDecoder.decode`.

        Raises:
            RefusedError: 422, an image cannot be read, or the box is not inside of it; 503, too many images are in
                flight, or the network failed.
        """
        batcher, decoder = self.batcher, self.decoder  # of one model, also if another one is loaded meanwhile
        with batcher.reserve(len(files)):
            return await batcher.run(await decoder.decode(files, box))

    async def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors (N, D) of texts, at least one.

        Raises:
            RefusedError: 409, the model has no text tower; 503, too much is in flight, or the network failed.
        """
        if not self.runtime.has_text:
            error = NoTextError("the service")
            raise RefusedError(409, error.message, error.remedy)
        with self.batcher.reserve(len(texts)):
            return await self.batcher.embed_text(texts)

    def load(self, runtime: Runtime | None = None) -> None:
        """Load the model and open the gallery. This takes seconds.

        Args:
            runtime: the network; None: made of the settings' model, or of the one that the gallery remembers.

        Raises:
            InputError: the model or the gallery does not exist, is damaged, or they do not belong together.
        """
        loaded = runtime or _create_runtime(self.settings)
        pool: GalleryPool | None = None
        try:
            if self.settings.gallery is not None:
                pool = GalleryPool(
                    self.settings.gallery,
                    loaded.fingerprint,
                    loaded.dim,
                    max_waiting=self.settings.max_waiting,
                    writable=self.settings.writing != "off",
                    max_answer_bytes=self.settings.max_answer_bytes,
                    on_other_model=self._reload if runtime is None and self.settings.model is None else None,
                )
                pool.warm_up()
            loaded.run(_black_image(loaded)[None])
            if loaded.has_text:
                loaded.embed_text(["an image"])
        except BaseException:
            if pool is not None:
                pool.close()
            if runtime is None:
                loaded.close()
            raise
        with self._lock:
            batch_size, max_waiting = self.settings.batch_size, self.settings.max_waiting
            self._batcher = Batcher(loaded, batch_size, max_waiting, self.metrics.record_batch)
            self._gallery = pool
            self._decoder = ImageDecoder(loaded.size, loaded.crop_mode, self.settings.max_pixels)
            if not self._closed:
                return
        self.close()

    def start_loading(self, on_failure: Callable[[], None]) -> None:
        """Load in a thread. If loading fails, `load_error` is set and `on_failure` is called in that thread."""

        def work() -> None:
            try:
                self.load()
            except Exception as error:
                self.load_error = error
                if not isinstance(error, LookalikeError):
                    log.exception("the service could not start")
                on_failure()

        threading.Thread(target=work, name="lookalike-loading", daemon=True).start()

    def _reload(self) -> None:
        """Load the model that the gallery has got, in a thread; the pool calls this. Requests get 503 meanwhile."""
        with self._lock:
            now = time.monotonic()
            if self._closed or now - self._reloaded < RELOAD_SECONDS:
                return
            self._reloaded = now
            before = (self._decoder, self._batcher, self._gallery)

        def work() -> None:
            log.info("the gallery has another model now: loading it")
            try:
                self.load()
            except Exception:  # the gallery's reason for 503 stays; the next request after a while tries again
                log.exception("the gallery's new model could not be loaded")
                return
            time.sleep(self.settings.drain_seconds)  # requests that came before have their answers by then
            for part in before:
                if part is not None:
                    part.close()

        threading.Thread(target=work, name="lookalike-reloading", daemon=True).start()

    def close(self) -> None:
        """Finish the accepted work, and close all parts."""
        with self._lock:
            self._closed = True
            parts = (self._decoder, self._batcher, self._gallery)
            self._decoder = self._batcher = self._gallery = None
        for part in parts:
            if part is not None:
                part.close()

    async def reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is."""
        if self.load_error is not None:
            return ["the service could not start."]
        if not self.is_loaded:
            return [STARTING]
        reasons = list(await self.gallery.reasons()) if self.settings.gallery is not None else []
        if self.batcher.failure:  # it may work again
            try:
                await self.batcher.run([_black_image(self.runtime)])
            except RefusedError as error:
                reasons.append(str(error))
        return reasons

    def _count_waiting(self) -> float:
        return 0.0 if self._batcher is None else float(self._batcher.waiting)


def _create_runtime(settings: Settings) -> Runtime:
    from lookalike.models.runtime import create_runtime

    model = settings.model
    if model is None and settings.gallery is not None:
        with Gallery.open(settings.gallery) as gallery:
            model = gallery.about.model
            if not model:
                raise InputError(
                    f"{gallery.location}: the location of its model is not known.",
                    f"Give {describe_model(gallery.about)}: --model",
                )
    return create_runtime(model or "default", settings.runtime)


def _black_image(runtime: Runtime) -> np.ndarray:
    return np.zeros((runtime.size, runtime.size, 3), np.uint8)


def _raise_starting() -> NoReturn:
    raise unavailable(STARTING)
