"""Embedding on many machines, with Ray Data (https://docs.ray.io/en/latest/data/data.html).

    listing (here) ▸ reading, decoding (tasks, anywhere) ▸ vectors (actors that hold the model) ▸ rows

Only the names of files travel to the machines, which must see them under the same paths, or as objects of a store; what
comes back are finished rows. A machine that is lost costs what it was working on: Ray does that again elsewhere. What
travels between our own processes are pickles; none is read from a file.
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
from lookalike.gallery.scan import ExistingItems, IngestBatch, new_row, sorted_out
from lookalike.gallery.sources.base import ImageSource, SourceImage, read_file
from lookalike.gallery.sources.remote import read_object
from lookalike.gallery.store.base import FailedFile, GalleryItem, NewItem, batches
from lookalike.hardware import cores
from lookalike.image import CropMode, dhash

if TYPE_CHECKING:
    from lookalike.models.pretrained import ImageModel

PORTION = 100_000  # items that are handed to Ray at once
BLOCK = 256  # items of one task
TOGETHER = 64  # pictures through the network at once
WAIT = 10.0  # seconds in which a cluster must answer
AHEAD = 2  # finished tables that wait here
SHARE = 0.5  # of a core, for a task and for an actor: on a machine of one core both must fit

ITEM = pa.field("item", pa.binary())  # a pickled Item
REJECTED = pa.field("rejected", pa.binary())  # a pickled Rejected, or null
DECODED = pa.schema([ITEM, REJECTED, ("digest", pa.binary()), ("thumbnail", pa.binary()), ("pixels", pa.binary())])
FINISHED = pa.schema([*(field for field in DECODED if field.name != "pixels"), ("vector", pa.binary()),
                      ("look", pa.int64())])  # fmt: skip


class Cluster:
    """A connection to a Ray cluster; a context manager.

    Args:
        address: of a cluster that is there ("auto", "HOST:PORT"); None: one on this machine, which ends with it.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._ray = _import_ray()
        self._ours = False

    def __enter__(self) -> Cluster:
        if self._ray.is_initialized():  # by whoever calls us
            return self
        how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.address is None:
            how |= {"num_cpus": cores(), "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
        try:
            _knock(self.address)
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

    def embedded(
        self,
        model: ImageModel,
        known: ExistingItems,
        listings: Iterable[ImageSource],
        *,
        label: str | None = None,
        too_young: Callable[[SourceImage], bool] | None = None,
    ) -> Generator[IngestBatch]:
        """Everything that is listed, in batches whose pictures are rows; in no certain order.

        The same content under another path is embedded again: who has it already is known here only.

        Args:
            model: makes the vectors; a copy of it goes to each actor.
            known: what is there; it is only read.
            listings: what to look at.
            label: what all of them are, whatever their listing says.
            too_young: says of which files to wait a little longer.

        Raises:
            InputError: pictures inside a zip or a table, which the machines could not read.
        """
        for batch, items, before in portions(known, listings, label=label, too_young=too_young):
            yield batch
            if items:
                for table in self.tables(model, items):
                    yield _as_batch(table, before, label)

    def tables(
        self, model: ImageModel, items: Sequence[SourceImage], last: tuple[type, tuple[Any, ...]] | None = None
    ) -> Iterator[pa.Table]:
        """What becomes of items: tables of `FINISHED`, or of what a last stage makes of them.

        Args:
            model: makes the vectors.
            items: with closures that can travel.
            last: a class whose objects take and give a table, and its arguments.
        """
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        shipped = self._ray.put(model)
        gpus = model.device.type == "cuda"
        resources = self._ray.cluster_resources()
        most = max(1, int(resources.get("GPU" if gpus else "CPU", 1)))
        blocks = [
            pa.table({"item": [pickle.dumps(item) for item in some]}, pa.schema([ITEM]))
            for some in batches(items, BLOCK)
        ]
        made = data.from_arrow(blocks).map_batches(
            decoded_table,
            batch_format="pyarrow",
            batch_size=None,
            fn_kwargs={"size": model.config.image_size, "crop_mode": model.config.crop_mode},
            num_cpus=SHARE,
        )
        made = made.map_batches(
            Vectors,
            batch_format="pyarrow",
            batch_size=BLOCK,
            fn_constructor_args=([shipped],),  # in a list it stays a reference
            compute=data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=0 if gpus else SHARE,
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
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=AHEAD)


def decoded_table(table: pa.Table, size: int, crop_mode: CropMode) -> pa.Table:
    """A task: items are read and decoded; a table of `DECODED`, with `size` × `size` × 3 bytes of pixels each."""
    rows: list[dict[str, Any]] = []
    for packed in table["item"].to_pylist():
        found: Any = read_image_bytes(pickle.loads(packed))
        if isinstance(found, ImageBytes):
            found = decode_image(found, size, crop_mode)
        if isinstance(found, FailedFile):
            rows.append({"item": packed, "rejected": pickle.dumps(found)})
        else:
            pixels = found.pixels.tobytes()
            rows.append({"item": packed, "digest": found.digest, "thumbnail": found.thumbnail, "pixels": pixels})
    return pa.Table.from_pylist(rows, DECODED)


class Vectors:
    """An actor that holds the model and gives vectors to decoded pictures."""

    def __init__(self, model: list[Any]) -> None:
        import ray

        from lookalike.models.runtime import TorchRuntime

        loaded: ImageModel = ray.get(model[0])
        if ray.get_gpu_ids():
            loaded = loaded.to("cuda")
        self._embedder = TorchRuntime(loaded)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Table of `DECODED` to table of `FINISHED`; vectors are the bytes of (D,) float32."""
        size = self._embedder.size
        pixels = table["pixels"].to_pylist()
        whole = [row for row, one in enumerate(pixels) if one is not None]
        vectors: list[bytes | None] = [None] * len(pixels)
        looks: list[int | None] = [None] * len(pixels)
        for some in batches(whole, TOGETHER):
            pictures = np.stack([np.frombuffer(pixels[row], np.uint8).reshape(size, size, 3) for row in some])
            found = self._embedder.embed(pictures)
            signed = dhash(pictures).view(np.int64)
            for row, vector, look in zip(some, found, signed.tolist(), strict=True):
                vectors[row], looks[row] = vector.tobytes(), look
        columns = {name: table[name] for name in FINISHED.names if name in table.schema.names}
        return pa.table({**columns, "vector": vectors, "look": looks}, FINISHED)


def rows_of(
    table: pa.Table, before: dict[str, GalleryItem] | None = None, label: str | None = None
) -> tuple[list[NewItem], list[FailedFile]]:
    """The rows and the rejected files of a table of `FINISHED`."""
    rows, rejected = [], []
    for one in table.to_pylist():
        if one["rejected"] is not None:
            rejected.append(pickle.loads(one["rejected"]))
            continue
        item: SourceImage = pickle.loads(one["item"])
        vector = np.frombuffer(one["vector"], np.float32)
        look = one["look"] & (2**64 - 1)
        of_path = (before or {}).get(item.path)
        rows.append(new_row(item, one["digest"], vector, one["thumbnail"], look, of_path, label))
    return rows, rejected


def _as_batch(table: pa.Table, before: dict[str, GalleryItem], label: str | None) -> IngestBatch:
    rows, rejected = rows_of(table, before, label)
    paths = {row.path for row in rows}
    return IngestBatch(
        rows=rows, rejected=rejected, before={path: row for path, row in before.items() if path in paths}
    )


def portions(
    known: ExistingItems,
    listings: Iterable[ImageSource],
    *,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
) -> Iterator[tuple[IngestBatch, list[SourceImage], dict[str, GalleryItem]]]:
    """What is listed, told from what is there: a batch of what needs no work, and now and then many items that do, with
    the rows that they replace. For the arguments, and what is raised, see `Cluster.embedded`.
    """
    items: list[SourceImage] = []
    before: dict[str, GalleryItem] = {}
    for batch, todo in sorted_out(known, listings, label=label, too_young=too_young):
        for item in todo:
            _check_can_travel(item)
        items += todo
        before.update({item.path: batch.before[item.path] for item in todo if item.path in batch.before})
        if len(items) < PORTION:
            yield batch, [], {}
        else:
            yield batch, items, before
            items, before = [], {}
    yield IngestBatch(), items, before


def _check_can_travel(item: SourceImage) -> None:
    if getattr(item.load, "func", None) not in (read_file, read_object):
        raise InputError(
            f"{item.path}: lies inside another file, which other machines cannot open.",
            "Unpack it, or leave out --engine ray.",
        )


def _knock(address: str | None) -> None:
    """See that somebody answers; Ray would ask for minutes. Raises OSError."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host, int(port)), WAIT).close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers otherwise
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing("the package ray is not installed.", "ray") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray
