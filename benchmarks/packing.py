"""Measure how many images per second are packed: read, decoded, resized, hashed and written to disk.

    python benchmarks/packing.py tiny-imagenet [--size 64]

The baseline is one thread of Pillow on 5,000 of the same images: open, convert, resize, copy into an array.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike.data.pack import pack
from lookalike.data.registry import load_dataset
from lookalike.run import hardware

PLAIN = 5000


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set's name, a folder, zip, CSV or Parquet file")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    arguments = parser.parse_args()
    catalog = load_dataset(arguments.data)
    catalog = catalog.select(np.flatnonzero(catalog.splits != "test"))
    some = np.random.default_rng(0).permutation(len(catalog))[:PLAIN]
    plain = np.empty((len(some), arguments.size, arguments.size, 3), np.uint8)
    start = time.perf_counter()
    for place, row in enumerate(some):
        image = Image.open(io.BytesIO(catalog.read_bytes(int(row)))).convert("RGB")
        plain[place] = image.resize((arguments.size, arguments.size), Image.Resampling.BICUBIC)
    plain_rate = len(some) / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        made = pack(catalog, arguments.size, cache=Path(cache))
        seconds = time.perf_counter() - start
    rate = len(made.images) / seconds
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}; {catalog.name} at {arguments.size} px")
    print(f"packed {len(made.images):,} images in {seconds:.1f} s: {rate:,.0f} images/s")
    print(f"one thread of Pillow: {plain_rate:,.0f} images/s; ratio {rate / plain_rate:.2f}")


if __name__ == "__main__":
    main()
