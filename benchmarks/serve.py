"""Measure the service under load: time until ready, latency, throughput, and behaviour when overloaded.

    python benchmarks/serve.py [--rows 100000] [--steady 600] [--over 120] [--only ready one many steady over]

The service has the default model, a gallery of synthetic vectors and the default options of `lookalike serve`, and
listens on loopback. The load comes from a second process (`http_load.py`): JPEG photos of 640 x 480 pixels, one per
request, for prediction. The baseline in the same run is `plain_service.py`. Parts:

    ready   from the start of the process to a 200 of /ready, five times, and once before with an empty cache
    one     one client, one request after the other
    many    32 clients, in turns with the baseline; the median of the turns is the capacity
    steady  0.7 of the capacity: statuses, times, and growth of the memory after the first tenth
    over    3 times the capacity: statuses, successful answers per second, and the first answers afterwards
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

import lookalike
from lookalike.gallery.store.base import GalleryInfo, NewItem
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.image import decode
from lookalike.models.serialization import DEFAULT
from lookalike.run import hardware

HERE = Path(__file__).parent
PARTS = ("ready", "one", "many", "steady", "over")
PACKAGES = ("torch", "onnxruntime", "fastapi", "uvicorn", "h11")
CLIENTS = 32
BATCH = 1000
LABELS = 200


def make_photographs(folder: Path, count: int = 16) -> None:
    """Return JPEG files of 640 x 480 pixels, about as large as those of a camera: smooth shapes with grain."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, 6, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.jpg", quality=85)


def make_gallery(place: Path, rows: int) -> None:
    """Make a gallery of the default model, with labels and thumbnails."""
    model = lookalike.load()
    random = np.random.default_rng(1)
    thumbnail = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(thumbnail, "JPEG")
    centres = random.standard_normal((LABELS, model.embedding_dim), np.float32)
    about = GalleryInfo(model.fingerprint, model.embedding_dim, DEFAULT, model.config.image_size)
    with SqliteStore.create(place, about) as store:
        for start in range(0, rows, BATCH):
            kinds = random.integers(0, LABELS, min(BATCH, rows - start))
            vectors = centres[kinds] + random.standard_normal((len(kinds), model.embedding_dim), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            store.add(
                [
                    NewItem(
                        f"images/{start + n:09}.jpg", b"%032d" % (start + n), vector,
                        label=f"kind {kinds[n]}", thumbnail=thumbnail.getvalue(), dhash=start + n,
                    )
                    for n, vector in enumerate(vectors)
                ]
            )  # fmt: skip


class Service:
    """A service in its own process."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environ})
        self.url = self._url()

    def _url(self) -> str:
        while True:
            if found := re.search(r"http://[\d.]+:\d+", self._log.read_text()):
                return found.group()
            if self.process.poll() is not None:
                raise RuntimeError(self._log.read_text())
            time.sleep(0.005)

    def until_ready(self) -> None:
        """Wait until /ready returns 200."""
        while ask(f"{self.url}/ready")[0] != 200:
            if self.process.poll() is not None:
                raise RuntimeError(self._log.read_text())
            time.sleep(0.005)

    def megabytes(self) -> float:
        """Return the resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Return the processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(command: list[str], cache: Path, folder: Path) -> Iterator[Service]:
    """Run a service and stop it at the end."""
    service = Service(command, {"LOOKALIKE_CACHE": str(cache)}, folder / "service.log")
    try:
        yield service
    finally:
        service.process.terminate()
        service.process.wait(60)


def ask(url: str, body: bytes | None = None) -> tuple[int, float]:
    """Return status and seconds of one request on a new connection; status 0: no answer."""
    start = time.perf_counter()
    try:
        with urlopen(Request(url, body, {"Content-Type": "image/jpeg"} if body else {}), timeout=30) as answer:
            answer.read()
            return answer.status, time.perf_counter() - start
    except HTTPError as error:
        return error.code, time.perf_counter() - start
    except OSError:
        return 0, time.perf_counter() - start


def load(url: str, photographs: Path, *how: str) -> subprocess.Popen[str]:
    """Start the load in its own process."""
    command = [sys.executable, str(HERE / "http_load.py"), url, str(photographs), *how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def loaded(url: str, photographs: Path, *how: str) -> dict[str, Any]:
    """Return the result of the load."""
    text, _ = load(url, photographs, *how).communicate()
    answer: dict[str, Any] = json.loads(text)
    return answer


def said(answer: dict[str, Any]) -> str:
    """Format counts and times by status."""
    parts = [
        f"{status if status != '0' else 'no answer'}: {count:,} "
        f"(p50 {ms['p50']:g}, p99 {ms['p99']:g}, most {ms['most']:g} ms)"
        for status, count in sorted(answer["statuses"].items())
        for ms in [answer["ms"][status]]
    ]
    return "; ".join(parts) + (f"; unsent {answer['unsent']:,}" if answer["unsent"] else "")


class Bench:
    """Run the parts on one gallery."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.photographs, self.cache = folder / "photographs", folder / "cache"
        self.command = [
            sys.executable, "-c", "from lookalike.cli.main import run; run()", "serve",
            str(folder / "made.gallery"), "--port", "0",
        ]  # fmt: skip
        self.plain = [
            sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "plain_service:app",
            "--port", "0", "--no-access-log",
        ]  # fmt: skip
        self.capacity = given.capacity

    def serving(self) -> Any:
        return running(self.command, self.cache, self.folder)

    def ready(self) -> None:
        """Measure the time until the service is ready."""
        times = []
        for _ in range(6):
            start = time.perf_counter()
            with self.serving() as service:
                service.until_ready()
                times.append(time.perf_counter() - start)
                held = service.megabytes()
        first, *later = times
        print(f"ready with {self.given.rows:,} rows: {statistics.median(later):.2f} s (most {max(later):.2f}); with an "
              f"empty cache {first:.2f}; {held:.0f} MB then", flush=True)  # fmt: skip

    def one(self) -> None:
        """Measure one client."""
        sizes = [path.stat().st_size for path in self.photographs.iterdir()]
        with self.serving() as service:
            service.until_ready()
            url = f"{service.url}/v1/predict"
            loaded(url, self.photographs, "--clients", "1", "--seconds", "2")
            answer = loaded(url, self.photographs, "--clients", "1", "--seconds", "10")
        decoding = self._decoding()
        print(f"one client, JPEG of {statistics.mean(sizes) / 1000:.0f} kB: {said(answer)}; decoding alone "
              f"{1000 * decoding:.1f} ms", flush=True)  # fmt: skip

    def _decoding(self) -> float:
        data = next(self.photographs.iterdir()).read_bytes()
        times = []
        for _ in range(50):
            start = time.perf_counter()
            decode(data, 64, name="photograph")
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def many(self) -> None:
        """Measure 32 clients, in turns with the baseline."""
        rates: dict[str, list[float]] = {"ours": [], "/async": [], "/threads": []}
        how = ("--clients", str(CLIENTS), "--seconds", str(self.given.turn))
        for _ in range(self.given.rounds):
            with self.serving() as service:
                service.until_ready()
                loaded(f"{service.url}/v1/predict", self.photographs, *how[:2], "--seconds", "2")
                before = service.cpu_seconds()
                answer = loaded(f"{service.url}/v1/predict", self.photographs, *how)
                rates["ours"].append(answer["per_second"])
                print(f"  ours: {answer['per_second']:.0f}/s; {said(answer)}; "
                      f"{service.cpu_seconds() - before:.1f} s of processor time", flush=True)  # fmt: skip
            with running(self.plain, self.cache, self.folder) as service:
                service.until_ready()
                for route in ("/async", "/threads"):
                    loaded(f"{service.url}{route}", self.photographs, *how[:2], "--seconds", "2")
                    answer = loaded(f"{service.url}{route}", self.photographs, *how)
                    rates[route].append(answer["per_second"])
                    print(f"  plain {route}: {answer['per_second']:.0f}/s; {said(answer)}", flush=True)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        self.capacity = medians["ours"]
        ratios = ", ".join(
            f"{statistics.median(a / b for a, b in zip(rates['ours'], rates[route], strict=True)):.2f} times "
            f"{route} ({medians[route]:.0f}/s)"
            for route in ("/async", "/threads")
        )
        print(f"{CLIENTS} clients: {self.capacity:.0f}/s, {ratios}", flush=True)

    def steady(self) -> None:
        """Measure at 0.7 of the capacity."""
        seconds, rate = self.given.steady, 0.7 * self.capacity
        with self.serving() as service:
            service.until_ready()
            process = load(
                f"{service.url}/v1/predict", self.photographs, "--rate", str(rate), "--seconds", str(seconds)
            )
            held: list[float] = []
            while process.poll() is None:
                time.sleep(1)
                held.append(service.megabytes())
            answer = json.loads(process.communicate()[0])
        after = held[len(held) // 10 :]
        print(f"0.7 of the capacity, {rate:.0f}/s for {seconds:g} s: {said(answer)}; memory {after[0]:.0f} MB after a "
              f"tenth, {max(after):.0f} at most: {max(after) - after[0]:+.0f}", flush=True)  # fmt: skip

    def over(self) -> None:
        """Measure at 3 times the capacity and afterwards."""
        seconds, rate = self.given.over, 3 * self.capacity
        body = next(self.photographs.iterdir()).read_bytes()
        with self.serving() as service:
            service.until_ready()
            url = f"{service.url}/v1/predict"
            usual = statistics.median(ask(url, body)[1] for _ in range(50))
            before = service.cpu_seconds()
            answer = loaded(url, self.photographs, "--rate", str(rate), "--seconds", str(seconds))
            used = service.cpu_seconds() - before
            end = time.perf_counter()
            well = 0
            while well < 10 and time.perf_counter() - end < 60:
                status, took = ask(url, body)
                well = well + 1 if status == 200 and took <= max(3 * usual, 0.05) else 0
            back = time.perf_counter() - end
        share = answer["per_second"] / self.capacity
        print(f"3 times the capacity, {rate:.0f}/s for {seconds:g} s: {said(answer)}; {answer['per_second']:.0f} good "
              f"ones a second, {share:.2f} of the capacity; {used / seconds:.2f} cores; back to normal after "
              f"{back:.1f} s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=10.0, help="seconds of each turn of 'many'")
    parser.add_argument("--steady", type=float, default=600.0)
    parser.add_argument("--over", type=float, default=120.0)
    parser.add_argument("--capacity", type=float, default=0.0, help="a second, where 'many' is left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if "many" not in given.only and not given.capacity and {"steady", "over"} & set(given.only):
        parser.error("give --capacity, or run 'many'")
    machine = hardware()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{machine['cores']} cores of {machine['cpu']}, {date.today()}, {packages}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photographs(folder / "photographs")
        make_gallery(folder / "made.gallery", given.rows)
        bench = Bench(folder, given)
        for part in PARTS:
            if part in given.only:
                getattr(bench, part)()


if __name__ == "__main__":
    main()
