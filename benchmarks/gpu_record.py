"""Train a recipe on one GPU within a given number of seconds, and save the run.

    python benchmarks/gpu_record.py tiny_imagenet/record/h200/resnet18 --seconds 420 --data tiny-imagenet-200 --out OUT
    python benchmarks/gpu_record.py quickstart --seconds 5 --data builtin --out OUT training.compile=false   a rehearsal

The script first compiles and times every size of the recipe's `training.resolution`, with whole steps made of the
parts of the training loop. It computes the number of epochs from these rates and the given seconds, and the schedule
from the number of epochs. Then it trains with `lookalike.training.run`, as `lookalike train` does. It writes to OUT
the run folder without its checkpoints, as a tar file in parts of 15 MB (`cat run.tar.* | tar -x`), and `rates.json`:
images per second by size, and seconds of compiling.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import torch

from lookalike import recipe as recipes
from lookalike.data.loader import Loader
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.recipe import Recipe
from lookalike.run import Run, hardware
from lookalike.training import optim
from lookalike.training.distributed import init_distributed
from lookalike.training.loop import resolution
from lookalike.training.objective import create_objective
from lookalike.training.run import Callbacks, train

PART_BYTES = 15_000_000
TIMED_STEPS = 30


def rate_of(recipe: Recipe, training: Pack, size: int, device: torch.device) -> tuple[float, float]:
    """Return images per second at a size in pixels, and the seconds of the first step, which compiles the network."""
    settings = recipe.training
    classes = len(training.catalog.class_names)
    loader = Loader(
        training.images,
        training.labels,
        classes,
        batch_size=settings.batch_size,
        settings=recipe.data.augment,
        mean=recipe.data.mean,
        std=recipe.data.std,
        seed=settings.seed,
        device=device,
    )
    task = create_objective(recipe, classes)
    network = task.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optim.make_optimizer(network, task.loss, recipe.optimizer)
    average = optim.ModelEma(network, settings.ema_decay) if settings.ema_decay else None
    model: Any = torch.compile(network) if settings.compile else network
    network.train()

    def steps(count: int) -> float:
        start = time.perf_counter()
        for step in range(count):
            batch = loader.batch(step, size)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                outputs = model(batch.images)
            task.loss(outputs, batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(network, step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = steps(1)
    steps(3)
    count = TIMED_STEPS if device.type == "cuda" else 2
    return count * settings.batch_size / steps(count), first


def epochs_for(recipe: Recipe, rates: dict[int, float], images: int, size: int, seconds: float) -> int:
    """Return the number of epochs that fit into the seconds at these rates."""
    shares = [resolution(recipe.training, i / 1000, size) for i in range(1000)]
    seconds_per_image = sum(1 / rates[pixels] for pixels in shares) / len(shares)
    return max(1, int(seconds / (seconds_per_image * images)))


def keep(run: Run, out: Path) -> None:
    """Write the run folder without its checkpoints into OUT/run.tar.0, .1, ..."""
    whole = out / "run.tar"
    with tarfile.open(whole, "w") as archive:
        for path in sorted(run.path.rglob("*")):
            if path.is_file() and run.checkpoint_dir not in path.parents:
                archive.add(path, str(path.relative_to(run.path.parent)))
    data = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        (out / f"run.tar.{number}").write_bytes(data[start : start + PART_BYTES])


def main() -> None:
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE")
    parser.add_argument(
        "--seconds", type=float, required=True, help="of training; compiling and evaluating come on top"
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("runs/gpu"))
    given = parser.parse_intermixed_args()
    torch._dynamo.config.automatic_dynamic_shapes = False  # one compiled network for each size
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    recipe = recipes.load(given.recipe, [*given.changes, f"data.source={given.data}"])
    catalog = load_dataset(given.data)
    training = pack(catalog.select(catalog.rows_of("train")), recipe.data.image_size)
    print(f"{time.perf_counter() - begin:.1f} s: {len(training.images)} images packed", flush=True)

    device = init_distributed(recipe.training.device).device
    sizes = {resolution(recipe.training, i / 1000, training.size) for i in range(1000)}
    timed = {size: rate_of(recipe, training, size, device) for size in sorted(sizes)}
    rates = {size: rate for size, (rate, _) in timed.items()}
    epochs = epochs_for(recipe, rates, len(training.images), training.size, given.seconds)
    print(f"{time.perf_counter() - begin:.1f} s: {rates} images/s, {epochs} epochs", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "hardware": hardware(),
        "torch": torch.__version__,
        "images_per_second": rates,
        "compile_seconds": {size: first for size, (_, first) in timed.items()},
        "epochs": epochs,
        "seconds": given.seconds,
    }
    (given.out / "rates.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def watch(record: dict[str, Any], total: int) -> None:
        if record["kind"] == "eval" or record["step"] % (total // 40 + 1) < total // 400 + 1:
            print(f"{time.perf_counter() - begin:.1f} s: {record}", flush=True)

    recipe = recipes.load(given.recipe, [*given.changes, f"data.source={given.data}", f"training.epochs={epochs}"])
    folder = given.root / given.recipe.replace("/", "-")
    run = train(recipe, out=folder, callbacks=Callbacks(on_record=watch))
    keep(run, given.out)
    print(f"{time.perf_counter() - begin:.1f} s: {run.receipt()['results']['top1']:.4f} top-1", flush=True)


if __name__ == "__main__":
    main()
