"""Measure which share of the training loop's time the model's forward, backward and optimizer step take.

    python benchmarks/training_step.py [--model resnet18] [--stem patch] [--size 64] [--rounds 5] [--precision both]

The bare step uses one batch that never changes. The loop does everything that a run does: reading, augmenting,
resizing, schedule and logging. Both run in turns in one process, with the same network, batch size and precision, on
random images of Tiny ImageNet's size. `--precision both` times the bare step in bf16 and in float32, in turns, and
compares them with the choice of `training.precision: auto`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lookalike.data.catalog import Catalog, Row
from lookalike.data.pack import Pack, pack
from lookalike.recipe import Recipe
from lookalike.run import Run, hardware
from lookalike.training import optim
from lookalike.training.distributed import init_distributed
from lookalike.training.loop import train
from lookalike.training.malloc import keep_freed_memory
from lookalike.training.objective import create_objective
from lookalike.training.precision import choose_precision

CLASSES = 200


def made_up(count: int, folder: Path) -> Pack:
    """Make a pack of noise in `folder`; the content of the images does not affect the time."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    rows = [Row(path=f"{i}.png", label=i % CLASSES, split="train") for i in range(count)]
    for row, image in zip(rows, pixels, strict=True):
        Image.fromarray(image).save(folder / row.path, compress_level=0)
    names = [f"class {i}" for i in range(CLASSES)]
    return pack(Catalog.from_rows(rows, root=folder, class_names=names, name="noise"), 64, cache=folder / "packs")


def bare_step(recipe: Recipe, size: int) -> Any:
    """Return a function that does one forward, backward and optimizer step on a constant batch."""
    network = create_objective(recipe, CLASSES).network.to(memory_format=torch.channels_last).train()
    optimizer = optim.make_optimizer(network, nn.Identity(), recipe.optimizer)
    precision = choose_precision(recipe.training, network, size, init_distributed("cpu")).precision
    x = torch.randn(recipe.training.batch_size, 3, size, size).to(memory_format=torch.channels_last)
    y = torch.randint(0, CLASSES, (len(x),))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(x)
        F.cross_entropy(logits.float(), y, label_smoothing=recipe.training.label_smoothing).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_per_step(step: Callable[[], None], steps: int) -> float:
    """Return the mean time of a step, after one that is not counted."""
    with keep_freed_memory(torch.device("cpu")):  # as in the loop
        step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps


def compare_precisions(recipe: Recipe, size: int, rounds: int, steps: int) -> None:
    """Time the bare step in both precisions, and print the speed of `auto` relative to the faster one."""
    batch = recipe.training.batch_size
    network = create_objective(recipe, CLASSES).network.to(memory_format=torch.channels_last)
    probe = choose_precision(recipe.training, network, size, init_distributed("cpu"))
    step_in = {p: bare_step(with_precision(recipe, p), size) for p in ("bf16", "float32")}
    times: dict[str, list[float]] = {p: [] for p in step_in}
    for _ in range(rounds):
        for precision, step in step_in.items():
            times[precision].append(seconds_per_step(step, steps))
    rates = {precision: batch / statistics.median(all_of_it) for precision, all_of_it in times.items()}
    for precision, rate in rates.items():
        print(f"{precision:8} {1000 * batch / rate:8.1f} ms   {rate:6.0f} images/s")
    share = rates[probe.precision] / max(rates.values())
    print(f"auto takes {probe.precision}, {share:.2f} of the better one; it measured {probe.milliseconds} ms")


def with_precision(recipe: Recipe, precision: str) -> Recipe:
    """Return the recipe with another precision."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": precision})})


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="pixels trained on")
    parser.add_argument("--stem", default="patch", help="of ResNets")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "float32", "both"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each in a round")
    arguments = parser.parse_args()
    options = f"{{stem: {arguments.stem}}}" if "resnet" in arguments.model else "{}"
    recipe = Recipe.from_yaml(
        f"model: {{name: {arguments.model}, options: {options}}}\n"
        f"training: {{epochs: 1, resolution: [[0, {arguments.size}]], evaluate_every: 99, checkpoint_seconds: 1000}}\n"
    )
    machine = hardware()
    batch = recipe.training.batch_size
    name = f"{arguments.model} {options}" if options != "{}" else arguments.model
    print(f"{machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}, precision {arguments.precision}")
    print(f"{name} at {arguments.size} px, batch {batch}, medians of {arguments.rounds} rounds")
    if arguments.precision == "both":
        compare_precisions(recipe, arguments.size, arguments.rounds, arguments.steps)
        return
    recipe = with_precision(recipe, arguments.precision)
    step = bare_step(recipe, arguments.size)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as noise:
        images = made_up(batch * arguments.steps, Path(noise))
        for number in range(arguments.rounds):
            bare.append(seconds_per_step(step, arguments.steps))
            with tempfile.TemporaryDirectory() as folder:
                times: list[float] = []
                run = Run.create(Path(folder) / f"round-{number}", recipe)

                def on_record(record: dict[str, Any], total: int, times: list[float] = times) -> None:
                    if record["kind"] == "train":
                        times.append(time.perf_counter())

                train(run, init_distributed("cpu"), images, images, on_record=on_record)
                loop.append((times[-1] - times[0]) / (len(times) - 1))  # the first step also warms up
    shares = [b / w for b, w in zip(bare, loop, strict=True)]
    print(f"bare step {1000 * statistics.median(bare):7.1f} ms   {batch / statistics.median(bare):6.0f} images/s")
    print(f"loop step {1000 * statistics.median(loop):7.1f} ms   {batch / statistics.median(loop):6.0f} images/s")
    spread = f"{min(shares):.1%} to {max(shares):.1%}"
    print(f"the model's own share of the loop: {statistics.median(shares):.1%} (rounds: {spread})")


if __name__ == "__main__":
    main()
