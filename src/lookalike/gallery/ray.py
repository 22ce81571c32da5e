"""Embed on several machines with Ray Data (https://docs.ray.io/en/latest/data/data.html).

    list (here) > read and decode (tasks, anywhere) > embed (actors that hold the model) > items

Only the names of files are sent to the machines, which must see them under the same paths or as objects of a remote
store; finished items come back. If a machine is lost, Ray repeats its work elsewhere. Only our own processes exchange
pickles; none is read from a file.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.gallery.decode import ImageBytes, decode_image, read_image_bytes
from lookalike.gallery.scan import ExistingItems, IngestBatch, changed_images, new_item
from lookalike.gallery.sources.base import ImageSource, SourceImage, read_file
from lookalike.gallery.sources.remote import read_object
from lookalike.gallery.store.base import FailedFile, GalleryItem, NewItem, batches
from lookalike.hardware import cores
from lookalike.image import CropMode, dhash

if TYPE_CHECKING:
    from lookalike.models.pretrained import ImageModel

PORTION = 100_000  # images that are handed to Ray at once
TASK_IMAGES = 256  # images of one task
EMBED_BATCH = 64  # images in one pass of the network
CONNECT_SECONDS = 10.0  # in which a cluster must answer
QUEUED_TABLES = 2  # finished tables that wait here
CORES_EACH = 0.5  # for a task and for an actor: both must fit on a machine with one core

IMAGE = pa.field("image", pa.binary())  # a pickled SourceImage
FAILED = pa.field("failed", pa.binary())  # a pickled FailedFile, or null
DECODED = pa.schema([IMAGE, FAILED, ("digest", pa.binary()), ("thumbnail", pa.binary()), ("pixels", pa.binary())])
FINISHED = pa.schema([IMAGE, FAILED, ("digest", pa.binary()), ("thumbnail", pa.binary()), ("vector", pa.binary()),
                      ("dhash", pa.int64())])  # fmt: skip


class Cluster:
    """A connection to a Ray cluster; a context manager.

    Args:
        address: of a running cluster ("auto", "HOST:PORT"); None: start one on this machine and stop it at the end.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._ray = _import_ray()
        self._ours = False

    def __enter__(self) -> Cluster:
        if self._ray.is_initialized():  # by the caller
            return self
        how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.address is None:
            how |= {"num_cpus": cores(), "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
        try:
            _check_answers(self.address)
            self._ray.init(self.address or "local", **how)
        except (OSError, RuntimeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            raise InputError(
                f"{self.address or 'here'}: no Ray cluster answers ({first}).",
                "Start one, 'ray start --head', and give the address that it prints.",
            ) from None
        self._ours = True
        return self

    def __exit__(self, *exc: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def embedded_batches(
        self,
        model: ImageModel,
        known: ExistingItems,
        sources: Iterable[ImageSource],
        *,
        label: str | None = None,
        too_young: Callable[[SourceImage], bool] | None = None,
    ) -> Generator[IngestBatch]:
        """List, read, decode and embed; yields batches whose images are finished items, in no particular order.

        A copy of a known file is embedded again, since only this process knows the existing content.

        Args:
            model: makes the vectors; each actor gets a copy.
            known: existing items; only read.
            sources: of the images.
            label: label of all images, in place of their sources' labels.
            too_young: tells which files have to wait for the next time.

        Raises:
            InputError: an image is inside a zip or a table, which other machines cannot read.
        """
        for batch, images, before in portions(known, sources, label=label, too_young=too_young):
            yield batch
            if images:
                for table in self.tables(model, images):
                    yield _as_batch(table, before, label)

    def tables(
        self, model: ImageModel, images: Sequence[SourceImage], last: tuple[type, tuple[Any, ...]] | None = None
    ) -> Iterator[pa.Table]:
        """Read, decode and embed images; yields tables of `FINISHED`, or the output of a last stage.

        Args:
            model: makes the vectors.
            images: whose `load` functions can be pickled.
            last: a class whose instances take and return a table, and its arguments.
        """
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        model_reference = self._ray.put(model)
        gpus = model.device.type == "cuda"
        resources = self._ray.cluster_resources()
        most = max(1, int(resources.get("GPU" if gpus else "CPU", 1)))
        blocks = [
            pa.table({"image": [pickle.dumps(image) for image in some]}, pa.schema([IMAGE]))
            for some in batches(images, TASK_IMAGES)
        ]
        made = data.from_arrow(blocks).map_batches(
            decoded_table,
            batch_format="pyarrow",
            batch_size=None,
            fn_kwargs={"size": model.config.image_size, "crop_mode": model.config.crop_mode},
            num_cpus=CORES_EACH,
        )
        made = made.map_batches(
            Vectors,
            batch_format="pyarrow",
            batch_size=TASK_IMAGES,
            fn_constructor_args=([model_reference],),  # in a list it stays a reference
            compute=data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=0 if gpus else CORES_EACH,
            num_gpus=1 if gpus else 0,
        )
        if last is not None:
            kind, arguments = last
            made = made.map_batches(
                kind,
                batch_format="pyarrow",
                batch_size=None,
                fn_constructor_args=arguments,
                compute=data.ActorPoolStrategy(min_size=1, max_size=most),
                num_cpus=0.1,
            )
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=QUEUED_TABLES)


def decoded_table(table: pa.Table, size: int, crop_mode: CropMode) -> pa.Table:
    """A task: read and decode images. Returns a table of `DECODED`, with `size` × `size` × 3 bytes of pixels each."""
    rows: list[dict[str, Any]] = []
    for image in table["image"].to_pylist():
        found: Any = read_image_bytes(pickle.loads(image))
        if isinstance(found, ImageBytes):
            found = decode_image(found, size, crop_mode)
        if isinstance(found, FailedFile):
            rows.append({"image": image, "failed": pickle.dumps(found)})
        else:
            pixels = found.pixels.tobytes()
            rows.append({"image": image, "digest": found.digest, "thumbnail": found.thumbnail, "pixels": pixels})
    return pa.Table.from_pylist(rows, DECODED)


class Vectors:
    """An actor that holds the model and embeds decoded images."""

    def __init__(self, model: list[Any]) -> None:
        import ray

        from lookalike.models.runtime import TorchRuntime

        loaded: ImageModel = ray.get(model[0])
        if ray.get_gpu_ids():
            loaded = loaded.to("cuda")
        self._embedder = TorchRuntime(loaded)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Turn a table of `DECODED` into one of `FINISHED`; vectors are the bytes of (D,) float32."""
        size = self._embedder.size
        pixels = table["pixels"].to_pylist()
        decoded = [row for row, one in enumerate(pixels) if one is not None]
        vectors: list[bytes | None] = [None] * len(pixels)
        hashes: list[int | None] = [None] * len(pixels)
        for some in batches(decoded, EMBED_BATCH):
            images = np.stack([np.frombuffer(pixels[row], np.uint8).reshape(size, size, 3) for row in some])
            found = self._embedder.embed(images)
            signed = dhash(images).view(np.int64)
            for row, vector, hash in zip(some, found, signed.tolist(), strict=True):
                vectors[row], hashes[row] = vector.tobytes(), hash
        columns = {name: table[name] for name in FINISHED.names if name in table.schema.names}
        return pa.table({**columns, "vector": vectors, "dhash": hashes}, FINISHED)


def items_of(
    table: pa.Table, before: dict[str, GalleryItem] | None = None, label: str | None = None
) -> tuple[list[NewItem], list[FailedFile]]:
    """The items and the failed files of a table of `FINISHED`."""
    items, failed = [], []
    for row in table.to_pylist():
        if row["failed"] is not None:
            failed.append(pickle.loads(row["failed"]))
            continue
        image: SourceImage = pickle.loads(row["image"])
        vector = np.frombuffer(row["vector"], np.float32)
        hash = row["dhash"] & (2**64 - 1)
        replaced = (before or {}).get(image.path)
        items.append(new_item(image, row["digest"], vector, row["thumbnail"], hash, replaced, label))
    return items, failed


def _as_batch(table: pa.Table, before: dict[str, GalleryItem], label: str | None) -> IngestBatch:
    items, failed = items_of(table, before, label)
    paths = {item.path for item in items}
    replaced = {path: item for path, item in before.items() if path in paths}
    return IngestBatch(items=items, failed=failed, before=replaced)


def portions(
    known: ExistingItems,
    sources: Iterable[ImageSource],
    *,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
) -> Iterator[tuple[IngestBatch, list[SourceImage], dict[str, GalleryItem]]]:
    """Compare the listed images with the existing items; see `Cluster.embedded_batches` for arguments and errors.

    Yields:
        A batch with everything that needs no work; the images that do, up to `PORTION` of them collected, or none; and
        the items that these replace.
    """
    images: list[SourceImage] = []
    before: dict[str, GalleryItem] = {}
    for batch, todo in changed_images(known, sources, label=label, too_young=too_young):
        for image in todo:
            _check_reachable(image)
        images += todo
        before.update({image.path: batch.before[image.path] for image in todo if image.path in batch.before})
        if len(images) < PORTION:
            yield batch, [], {}
        else:
            yield batch, images, before
            images, before = [], {}
    yield IngestBatch(), images, before


def _check_reachable(image: SourceImage) -> None:
    if getattr(image.load, "func", None) not in (read_file, read_object):
        raise InputError(
            f"{image.path}: is inside another file, which other machines cannot open.",
            "Unpack it, or use --backend local.",
        )


def _check_answers(address: str | None) -> None:
    """Check that a cluster listens at an address; Ray itself would try for minutes. Raises OSError."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage reports
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing("the package ray is not installed.", "ray") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray
