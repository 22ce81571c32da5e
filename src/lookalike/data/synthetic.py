"""The built-in data set: synthetic images that are drawn on first use and need no download.

It has six families of four classes. The classes of a family differ in one part or texture. Colours, pose, background,
light, lens and noise have the same distribution in all classes. An image depends only on size, seed, split, class and
index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from lookalike.data.catalog import SPLITS, Catalog, Row, Split
from lookalike.data.synthetic_scene import Scene
from lookalike.data.synthetic_shapes import FAMILIES
from lookalike.errors import InputError, nearest
from lookalike.files import atomic_folder, sweep
from lookalike.hardware import cores

VERSION = 1  # part of the folder name in the cache; incremented when any pixel changes
FILE_TIME = 946_684_800  # 2000-01-01; keeps the catalog's fingerprint independent of the time of writing
REMARK = "drawn, not photographed"
SIZES = range(16, 1025)
IMAGES_PER_WORKER = 500  # minimum; drawing fewer is faster than starting another interpreter

Progress = Callable[[int, int], None]


def families() -> dict[str, tuple[str, ...]]:
    """Return the class names of each family, sorted: `{"beetle": ("beetle-banded", ...), ...}`."""
    return {
        family: tuple(sorted(f"{family}-{member}" for member in FAMILIES[family][1])) for family in sorted(FAMILIES)
    }


CLASS_NAMES = tuple(name for names in families().values() for name in names)


def render(class_name: str, generator: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Draw one image of a class.

    Args:
        class_name: a name in `families()`, for example "beetle-striped".
        generator: source of randomness; everything that does not depend on the class is drawn first.
        size: side of the image in pixels, 16 to 1024.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: unknown class, or size out of range.
    """
    if class_name not in CLASS_NAMES:
        raise InputError(
            f"'{class_name}' is not a built-in class.{nearest(class_name, CLASS_NAMES)}",
            f"The classes are: {', '.join(CLASS_NAMES)}.",
        )
    _check_size(size)
    family, member = class_name.split("-")
    scene = Scene(generator, size)
    FAMILIES[family][0](scene.canvas, generator, member)
    return scene.photograph()


def catalog(
    *,
    seed: int = 0,
    size: int = 64,
    train_per_class: int = 150,
    val_per_class: int = 25,
    test_per_class: int = 25,
    cache: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Catalog:
    """Return the built-in data set, drawing its PNG files into the cache folder if they are missing.

    The files are `{train,val,test}/CLASS/NNNN.png`; the name of a class begins with its family. All splits have labels.
    Increasing the number of images per class does not change the first ones.

    Args:
        seed: seed of the images; the pixels do not depend on the number of workers.
        size: side of the images in pixels, 16 to 1024.
        train_per_class: training images per class, at least 1; there are 24 classes.
        val_per_class: validation images per class, at least 0.
        test_per_class: test images per class, at least 0.
        cache: folder of the images; by default $LOOKALIKE_CACHE or the user's cache folder.
        progress: called with (images drawn, total images) while drawing.
        workers: number of processes; by default one per 500 images, at most one per core.

    Raises:
        InputError: a number is out of range, or the cache folder cannot be written.
    """
    _check_size(size)
    counts = dict(zip(SPLITS, (train_per_class, val_per_class, test_per_class), strict=True))
    for key, number, least in (
        ("seed", seed, 0),
        ("train_per_class", train_per_class, 1),
        ("val_per_class", val_per_class, 0),
        ("test_per_class", test_per_class, 0),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if number < least:
            raise InputError(f"The built-in data's {key} is {number}.", f"Give {least} or more.")
    name = f"builtin-v{VERSION}-seed{seed}-{size}px-{train_per_class}-{val_per_class}-{test_per_class}"
    root = _cache_folder(cache) / name
    job = _Job(seed, size, counts, str(root))
    if not job.is_whole():
        _draw_beside(job, workers or _workers_for(job.total), progress)
    rows = [Row(_path(*picture), picture[1], picture[0]) for picture in job.pictures()]
    return Catalog.from_rows(rows, root=root, class_names=CLASS_NAMES, name="builtin", remark=REMARK)


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise InputError(f"Built-in images of {size} pixels cannot be drawn.", f"Give {SIZES[0]} to {SIZES[-1]}.")


def _cache_folder(cache: Path | None) -> Path:
    named = cache or os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike")
    return Path(named).expanduser().absolute()


def _workers_for(images: int) -> int:
    return max(1, min(cores(), images // IMAGES_PER_WORKER))


def _path(split: Split, label: int, index: int) -> str:
    return f"{split}/{CLASS_NAMES[label]}/{index:04d}.png"


@dataclass(frozen=True)
class _Job:
    """The images of one call of `catalog` and their folder."""

    seed: int
    size: int
    counts: dict[Split, int]
    folder: str

    @property
    def total(self) -> int:
        return sum(self.counts.values()) * len(CLASS_NAMES)

    def pictures(self) -> Iterator[tuple[Split, int, int]]:
        """Yield (split, label, index) of every image, in the order of the catalog."""
        for split, count in self.counts.items():
            for label in range(len(CLASS_NAMES)):
                for index in range(count):
                    yield split, label, index

    def is_whole(self) -> bool:
        """Return whether the folder has every image."""
        folder = Path(self.folder)
        try:
            return all((folder / _path(*picture)).stat().st_size > 0 for picture in self.pictures())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def draw(self, part: int, parts: int) -> Generator[None, None, None]:
        """Draw and save every `parts`-th image, starting at number `part`; yield after each image."""
        for number, (split, label, index) in enumerate(self.pictures()):
            if number % parts != part:
                continue
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, SPLITS.index(split), label, index]))
            path = Path(self.folder, _path(split, label, index))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(CLASS_NAMES[label], generator, self.size)).save(path, compress_level=1)
            os.utime(path, (FILE_TIME, FILE_TIME))
            yield


def _draw_beside(job: _Job, workers: int, progress: Progress | None) -> None:
    """Draw all images into a temporary folder and rename it to the job's folder."""
    folder = Path(job.folder)
    sweep(folder.parent, ".builtin-*.partial", locked=True)
    try:
        with atomic_folder(folder, remedy="Make room there, or set LOOKALIKE_CACHE to another folder.") as beside:
            inner = _Job(job.seed, job.size, job.counts, str(beside))
            steps = inner.draw(0, 1) if workers == 1 else _draw_in_processes(inner, workers)
            with closing(steps):  # stops the processes if `progress` raises
                for done, _ in enumerate(steps, 1):
                    if progress:
                        progress(done, job.total)
            if folder.is_file():
                folder.unlink()
            elif folder.exists() and not job.is_whole():
                shutil.rmtree(folder)
    except InputError:
        if not job.is_whole():  # if it is whole, another process has drawn the same images
            raise


def _draw_in_processes(job: _Job, workers: int) -> Generator[None, None, None]:
    """Run `job.draw` in several new interpreters; yield after each image.

    multiprocessing is not used because it would run the caller's script again (spawn) or copy its threads and locks
    (fork). All processes write to one pipe, one line per image: a dot, or the error message.
    """
    code = "from lookalike.data.synthetic import _work; _work()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    about = json.dumps(asdict(job))
    reading, writing = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    with os.fdopen(reading) as reports:
        try:
            try:
                for part in range(workers):
                    command = [sys.executable, "-P", "-c", code, about, str(part), str(workers)]
                    processes.append(subprocess.Popen(command, stdout=writing, stdin=subprocess.DEVNULL, env=env))
            finally:
                os.close(writing)
            for report in reports:
                if report != ".\n":
                    raise OSError(report.strip())
                yield
            for process in processes:
                if process.wait():
                    raise RuntimeError(f"a process that draws images ended with code {process.returncode}")
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _work() -> None:
    """Run one process of `_draw_in_processes`; each report is one short write, so reports do not interleave."""
    about, part, parts = sys.argv[1:]
    try:
        for _ in _Job(**json.loads(about)).draw(int(part), int(parts)):
            os.write(1, b".\n")
    except BrokenPipeError:
        sys.exit(1)  # the parent process has closed the pipe
    except OSError as error:
        os.write(1, f"{error}\n".encode())
