"""Compare adding a folder of JPEG files to a gallery with a plain baseline, on the same images.

    python benchmarks/gallery_ingest.py MODEL PICTURES [--photographs DIR] [--count 4000] [--large 60] [--rounds 3]

MODEL is a model folder, PICTURES a folder of JPEG files. Images in DIR (default: PICTURES) are enlarged to photos of
12 million pixels, with the noise of a camera. The baseline ("plain way") is a torch DataLoader with two workers that
decode with Pillow, PyTorch in eager float32, a FAISS index of the vectors, and a list of the paths, both written to
disk. It makes no thumbnails and no hashes, and does not check which images it already has. The two run in turns, each
in its own process. The time includes everything to the last sync, except loading the model and the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike.run import hardware

WAYS = ("plain", "float32", "auto")
LARGE = (4000, 3000)  # width and height of a photo in pixels
NOISE = 5.0  # standard deviation of the camera noise in gray levels
BATCH = 64


def jpegs(folder: Path) -> Iterator[Path]:
    """Return the JPEG files below a folder, in the order of the disk."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def link(source: Path, folder: Path, count: int) -> Path:
    """Make a folder with links to some of the images, drawn regardless of their classes."""
    folder.mkdir()
    files = sorted(jpegs(source))
    if not files:
        sys.exit(f"{source}: no JPEGs")
    for number, row in enumerate(np.random.default_rng(0).permutation(len(files))[:count]):
        (folder / f"{number:06d}.jpg").symlink_to(files[row].absolute())
    return folder


def enlarge(source: Path, folder: Path, count: int) -> Path:
    """Make a folder of photos of 12 million pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = sorted(jpegs(source))
    noise = rng.normal(0, NOISE, (LARGE[1], LARGE[0], 1)).astype(np.float32)
    for number in range(count):
        picture = (
            Image.open(files[int(rng.integers(len(files)))]).convert("RGB").resize(LARGE, Image.Resampling.BICUBIC)
        )
        noisy = np.asarray(picture, np.float32) + np.roll(noise, number, 1)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def plain(model_folder: str, pictures: Path, place: Path) -> Callable[[], dict[str, float]]:
    """Return the baseline as a function to be timed."""
    import faiss
    import torch
    from torch.utils.data import DataLoader, Dataset

    from lookalike.models.pretrained import load

    model = load(model_folder)
    size = model.config.image_size
    mean = torch.tensor(model.config.mean)[:, None, None]
    std = torch.tensor(model.config.std)[:, None, None]

    class Folder(Dataset[Any]):
        def __init__(self, files: list[Path]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, row: int) -> torch.Tensor:
            image = Image.open(self.files[row]).convert("RGB")
            scale = size / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
            return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std

    def run() -> dict[str, float]:
        files = sorted(pictures.iterdir())
        index = faiss.IndexFlatIP(model.embedding_dim)
        with torch.inference_mode():
            for x in DataLoader(Folder(files), BATCH, num_workers=2):
                vectors = torch.nn.functional.normalize(model._features(x), dim=1)
                index.add(vectors.numpy())
        place.mkdir()
        faiss.write_index(index, str(place / "index.faiss"))
        (place / "paths.json").write_text(json.dumps([str(file) for file in files]))
        for file in place.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        return {"rows": index.ntotal, "bytes": sum(file.stat().st_size for file in place.iterdir())}

    return run


def ours(model_folder: str, pictures: Path, place: Path, compute: str) -> Callable[[], dict[str, float]]:
    """Return adding to a gallery as a function to be timed."""
    from lookalike.gallery.ingest import ingest
    from lookalike.gallery.store.base import GalleryInfo
    from lookalike.gallery.store.sqlite import SqliteStore
    from lookalike.models.pretrained import load
    from lookalike.models.runtime import TorchRuntime

    embedder = TorchRuntime(load(model_folder), compute)  # type: ignore[arg-type]

    def run() -> dict[str, float]:
        with SqliteStore.create(place, GalleryInfo(embedder.fingerprint, embedder.dim)) as store:
            rows = ingest(store, embedder, pictures).added
        size = sum(file.stat().st_size for file in place.iterdir())
        return {"rows": rows, "bytes": size, "bfloat16": embedder.bfloat16}

    return run


def contestant(way: str, model: str, pictures: Path, place: Path) -> None:
    """Run one way and print its measurements as JSON."""
    run = plain(model, pictures, place) if way == "plain" else ours(model, pictures, place, way)
    start = time.perf_counter()
    found = run()
    print(json.dumps({**found, "seconds": time.perf_counter() - start}))


def measure(model: str, pictures: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run all ways in turns, after one run that fills the disk cache."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, model, str(pictures), "--way", way, "--into", f"{folder}/g"]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            if number:
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show(what: str, pictures: Path, found: dict[str, list[dict[str, float]]]) -> None:
    """Print images per second, the ratio to the baseline, and bytes per image on disk."""
    files = list(pictures.iterdir())
    own = statistics.fmean(file.stat().st_size for file in files)
    rates = {way: [one["rows"] / one["seconds"] for one in runs] for way, runs in found.items()}
    base = statistics.median(rates["plain"])
    body = "bfloat16" if found["auto"][0]["bfloat16"] else "float32: this CPU has no bfloat16"
    names = {"plain": "plain way", "float32": "gallery, float32", "auto": f"gallery, as it comes ({body})"}
    print(f"\n{len(files):,} {what}, {own / 1000:,.1f} kB each")
    for way, runs in found.items():
        rate = statistics.median(rates[way])
        spread = f"{min(rates[way]):,.0f} to {max(rates[way]):,.0f}"
        kept = runs[0]["bytes"] / runs[0]["rows"]
        print(f"  {names[way]:<40} {rate:8,.1f} images/s ({spread})  {rate / base:5.2f} ×  {kept:7,.0f} bytes/image")


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--photographs", type=Path, help="what the large ones are made of")
    parser.add_argument("--count", type=int, default=4000, help="pictures as they are")
    parser.add_argument("--large", type=int, default=60, help="photographs of 12 million pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        contestant(arguments.way, arguments.model, arguments.pictures, arguments.into)
        return
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}, {date.today()}, medians of {arguments.rounds} rounds")
    print(", ".join(f"{name} {version(name)}" for name in ("lookalike", "torch", "pillow", "faiss-cpu")))
    with tempfile.TemporaryDirectory() as folder:
        small = link(arguments.pictures, Path(folder) / "small", arguments.count)
        show("pictures as they are", small, measure(arguments.model, small, arguments.rounds))
        large = enlarge(arguments.photographs or arguments.pictures, Path(folder) / "large", arguments.large)
        show("photographs of 12 million pixels", large, measure(arguments.model, large, arguments.rounds))


if __name__ == "__main__":
    main()
