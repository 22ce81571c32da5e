"""Compare training speed with timm's training script, on the same images with the same network.

    pip install timm, and a copy of https://github.com/huggingface/pytorch-image-models (its train.py is in no package)
    python benchmarks/against_timm.py path/to/pytorch-image-models/train.py path/to/tiny-imagenet-200 [--steps 24]

Both train ResNet-18 with the stem for photos (7 x 7, stride 2, pooling) on 200 classes, in batches of 256 at 64 pixels,
with bfloat16, channels last, SGD and label smoothing. The only augmentations are crops and flips. timm's script reads
JPEG files in worker processes; Lookalike reads a pack, and packing is timed separately. The two run in turns, each in
its own process. The rate is the median over the steps after the first few. timm runs once for each number of workers,
and the fastest run counts.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from lookalike.hardware import cores
from lookalike.run import hardware

BATCH, SIZE, CLASSES = 256, 64, 200
SKIPPED = 4  # first steps, in which buffers are allocated and workers start
WORKERS = (1, 2, 4)
RATE = re.compile(r"Time: [\d.]+s, +([\d.]+)/s")
TIMM = (
    "--model resnet18 --img-size {size} --num-classes {classes} -b {batch} --epochs 1 --sched step --warmup-epochs 0 "
    "--opt sgd --lr 0.1 --weight-decay 5e-4 --smoothing 0.1 --amp --amp-dtype bfloat16 --device cpu --channels-last "
    "--scale 0.8 1.0 --ratio 1.0 1.0 --color-jitter 0 --hflip 0.5 --log-interval 1 --workers {workers} "
    "--output {output}"
)
OURS = """
import sys, time
from pathlib import Path
from lookalike.data.pack import pack
from lookalike.data.registry import load_dataset
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.distributed import init_distributed
from lookalike.training.loop import train

folder, work, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
recipe = Recipe.from_yaml(
    "model: {name: resnet18, options: {stem: imagenet}}\\n"
    "optimizer: {lr: 0.1}\\n"
    "training: {epochs: 1, evaluate_every: 99, checkpoint_seconds: 1000, batch_size: %d}\\n" % batch
)
start = time.perf_counter()
catalog = load_dataset(folder)
images = pack(catalog, recipe.data.image_size)
print("packed", len(images.images), time.perf_counter() - start, flush=True)
few = type(images)(images.images[:batch], catalog.select(range(batch)), (), Path())
times = []
on_record = lambda record, total: times.append(time.perf_counter()) if record["kind"] == "train" else None
train(Run.create(work / "run", recipe), init_distributed("cpu"), images, few, on_record=on_record)
for before, after in zip(times, times[1:]):
    print("rate", batch / (after - before))
"""


def lay_out(source: Path, folder: Path, images: int) -> None:
    """Link the first training images of each class into class folders in train/, and a few into validation/."""
    classes = sorted(path for path in (source / "train").iterdir() if path.is_dir())
    if len(classes) != CLASSES:
        raise SystemExit(f"{source}: {len(classes)} classes in train/; give the folder of Tiny ImageNet.")
    for one in classes:
        files = sorted((one / "images").iterdir())
        for split, some in (("train", files[: images // CLASSES]), ("validation", files[-2:])):
            place = folder / split / one.name
            place.mkdir(parents=True)
            for file in some:
                (place / file.name).symlink_to(file.resolve())


def timm_rate(script: Path, folder: Path, work: Path, workers: int) -> float:
    """Images per second of timm's script with this number of workers."""
    words = TIMM.format(size=SIZE, classes=CLASSES, batch=BATCH, workers=workers, output=work / f"timm-{workers}")
    command = [sys.executable, str(script), str(folder), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work)
    rates = [float(rate) for rate in RATE.findall(done.stdout + done.stderr)]
    if done.returncode or len(rates) <= SKIPPED + 1:
        raise SystemExit(f"timm's script failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return statistics.median(rates[SKIPPED:-1])


def our_rate(folder: Path, work: Path) -> tuple[float, str]:
    """Images per second of Lookalike's loop, and its message about packing."""
    environ = {**os.environ, "LOOKALIKE_CACHE": str(work / "cache")}
    command = [sys.executable, "-c", OURS, str(folder / "train"), str(work / f"run-{time.time()}"), str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = [line.split() for line in done.stdout.splitlines()]
    rates = [float(line[1]) for line in lines if line[0] == "rate"]
    packed = next(line for line in lines if line[0] == "packed")
    return statistics.median(rates[SKIPPED:]), f"{int(packed[1]):,} images in {float(packed[2]):.1f} s"


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="timm's train.py")
    parser.add_argument("data", type=Path, help="the folder of Tiny ImageNet")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    machine = hardware()
    print(f"{cores()} cores of {machine['cpu']}, {date.today()}, torch {version('torch')}, timm {version('timm')}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        lay_out(given.data, work / "images", given.steps * BATCH)
        ratios = []
        for number in range(given.rounds):
            ours, packed = our_rate(work / "images", work)
            theirs = {workers: timm_rate(given.script, work / "images", work, workers) for workers in WORKERS}
            best = max(theirs, key=lambda workers: theirs[workers])
            ratios.append(ours / theirs[best])
            if not number:
                print(f"packed {packed}")
            others = ", ".join(f"{rate:.0f} with {workers} workers" for workers, rate in theirs.items())
            print(f"Lookalike {ours:.0f} images/s; timm {others}: {ratios[-1]:.2f} times", flush=True)
        print(f"median of {given.rounds} rounds: {statistics.median(ratios):.2f} times timm's images a second")


if __name__ == "__main__":
    main()
