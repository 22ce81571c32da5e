"""Measure the time and memory that decoding or refusing the worst image files takes.

    python benchmarks/hostile_images.py [--limit SECONDS] [--only WORD]

The files are, for each kind in `tests/hostile.py`, one just within the limits of `lookalike.image.limits` and one
beyond them, and for each format one image with the maximum number of pixels. Each is decoded to 224 pixels in its own
process, as `lookalike gallery add` does. Prints seconds of processor time, MiB and the outcome. The exit code is 1 if
a file took longer than the limit (10 seconds).
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from PIL import Image  # noqa: E402

from hostile import KINDS, chunk, jpeg, jpeg_of_scans  # noqa: E402

SIZE = 224  # side of the network's input in pixels
WIDTH, HEIGHT = 15_000, 10_000  # 150 million pixels


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> bytes:
    """Return an image of repeated noise, which is quick to make."""
    tile = Image.effect_noise((500, 500), 90).convert(mode)
    whole = Image.new(mode, size)
    for left in range(0, size[0], 500):
        for top in range(0, size[1], 500):
            whole.paste(tile, (left, top))
    file = io.BytesIO()
    whole.save(file, kind, **options)
    return file.getvalue()


def flat_png() -> bytes:
    """Return a file of a few hundred kilobytes that decodes to 150 million pixels of 64 bits."""
    import struct

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 6, 0, 0, 0))
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(bytes(1 + 8 * WIDTH)) for _ in range(HEIGHT)] + [packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


LARGE: dict[str, Callable[[], bytes]] = {
    "JPEG, 150 million pixels": lambda: encoded("JPEG", quality=90),
    "JPEG, progressive, 16 scans of 150 million": lambda: jpeg_of_scans(16, WIDTH, HEIGHT),
    "JPEG, progressive, 100 scans of 25 million": lambda: jpeg_of_scans(100, 5000, 5000),
    "JPEG, one colour": lambda: jpeg(WIDTH, HEIGHT),
    "PNG, 150 million pixels": lambda: encoded("PNG", "L", compress_level=1),
    "PNG, 150 million pixels of 64 bits, one colour": flat_png,
    "WebP, lossy, 150 million pixels": lambda: encoded("WEBP", quality=50, method=0),
    "GIF, 150 million pixels": lambda: encoded("GIF", "L"),
    "TIFF, 150 million pixels, LZW": lambda: encoded("TIFF", "L", compression="tiff_lzw"),
    "TIFF, 150 million pixels of 16 bits": lambda: encoded("TIFF", "I;16"),
    "BMP, 150 million pixels": lambda: encoded("BMP", "L"),
}


def cases(only: str) -> dict[str, Callable[[], bytes]]:
    """Return the files to decode, by name."""
    found: dict[str, Callable[[], bytes]] = {}
    for name, (make, most, more) in KINDS.items():
        found[f"{name}: {most:,}"] = lambda make=make, count=most: make(count)
        found[f"{name}: {more:,}"] = lambda make=make, count=more: make(count)
    return {name: make for name, make in {**found, **LARGE}.items() if only in name}


def decode_one(name: str) -> None:
    """Decode a file and print the measurements; runs in its own process."""
    from lookalike.errors import InputError
    from lookalike.image import decode

    data = sys.stdin.buffer.read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        decode(data, SIZE, name=name)
        said = "decoded"
    except InputError as error:
        said = error.message.removeprefix(f"{name}: ")
    seconds = time.process_time() - start
    memory = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name:52} {len(data) / 1e6:8.1f} MB {seconds:7.2f} s {memory:7,.0f} MiB  {said[:70]}")


def main() -> int:
    """Decode all files, one after the other."""
    parser = argparse.ArgumentParser(description="What the worst image files cost.")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of processor time that one may take")
    parser.add_argument("--only", default="", help="those whose name holds this word")
    parser.add_argument("--decode", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.decode:
        decode_one(given.decode)
        return 0
    slow = 0
    for name, make in cases(given.only).items():
        result = subprocess.run(
            [sys.executable, __file__, "--decode", name], input=make(), stdout=subprocess.PIPE, check=True
        )
        line = result.stdout.decode()
        slow += float(line.split(" MB ")[1].split(" s ")[0]) > given.limit
        print(line, end="", flush=True)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
