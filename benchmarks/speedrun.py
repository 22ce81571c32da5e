"""Measure the minutes of training that a recipe needs to reach a top-1 accuracy on the validation images.

    python benchmarks/speedrun.py RECIPE [KEY=VALUE]... [--seeds 3] [--at 50 55 60 65] [--out runs/speed]
    python benchmarks/speedrun.py RUN FOLDER...         the same for existing runs, up to their last evaluation

The time is that of the training steps, from the rates in metrics.jsonl. It includes reading, augmenting, forward,
backward and optimizer, but not evaluations and reports. A recipe is evaluated once per epoch, so a time is at most one
epoch too long. Since the schedule of a recipe ends with its last step, the accuracy before that is not what a shorter
recipe would reach: the last line is the result of a recipe, and the lines above it show its progress.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date
from pathlib import Path

from lookalike import recipe as recipes
from lookalike.run import Run, hardware
from lookalike.training.run import train


def curve(run: Run) -> list[tuple[float, float]]:
    """Return minutes of training and top-1 in percent at each evaluation."""
    seconds, last, points = 0.0, 0, []
    for record in run.history():
        if record["kind"] == "train":
            seconds += (record["step"] - last) * run.recipe.training.batch_size / record["images_per_second"]
            last = record["step"]
        elif record["kind"] == "eval":
            points.append((seconds / 60, 100 * record["top1"]))
    return points


def reached(points: list[tuple[float, float]], top1: float) -> float | None:
    """Return the minutes until an evaluation reached the given top-1."""
    return next((minutes for minutes, found in points if found >= top1), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="a recipe and changes to it, or run folders")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at", type=float, nargs="+", default=[40.0, 50.0, 55.0, 60.0, 65.0])
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    given = parser.parse_args()
    if (Path(given.what[0]) / "recipe.yaml").is_file():
        runs = [Run(Path(name)) for name in given.what]
        for run in runs:
            if not any("top1" in record for record in run.history()):
                raise SystemExit(f"{run.path}: it has no evaluation with a top-1 yet; give runs of recognition.")
    else:
        name, *changes = given.what
        runs = []
        for seed in range(given.seeds):
            recipe = recipes.load(name, [*changes, "training.evaluate_every=1", f"training.seed={seed}"])
            runs.append(train(recipe, out=given.out / f"{name.replace('/', '-')}-seed{seed}", resume=True))
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}, {date.today()}: {', '.join(run.path.name for run in runs)}")
    curves = [curve(run) for run in runs]
    for top1 in given.at:
        times = [reached(points, top1) for points in curves]
        known = [minutes for minutes in times if minutes is not None]
        if known:
            spread = f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else ""
            print(f"{top1:5.1f} %  {statistics.median(known):7.1f} min{spread}, {len(known)} of {len(runs)} runs")
    minutes, ends = zip(*(points[-1] for points in curves), strict=True)
    each = ", ".join(f"{top1:.2f}" for top1 in ends)
    print(f"at the last evaluation: {statistics.mean(ends):.2f} % ({each}) after {statistics.mean(minutes):.1f} min")


if __name__ == "__main__":
    main()
