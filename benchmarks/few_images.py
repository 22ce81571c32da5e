r"""Few images per class: `fit` and `own` beside training from scratch, scikit-learn, and timm's fine-tuning script.

    python benchmarks/few_images.py measure SETS --out docs/receipts/few_images-default.json
    python benchmarks/few_images.py measure SETS --model effnet/ --timm pytorch-image-models/train.py \
        --out docs/receipts/few_images-efficientnet_lite0.json
    python benchmarks/few_images.py page

SETS is a folder with a folder for each set of photographs, with the images of a class in folders of its name at any
depth. 5, 20 and 100 images of each class are drawn with a seed, and as many as 60 of the others are the test images.
All methods get the same files and are measured on the same test images, one view of each:

    fit      lookalike fit
    own      lookalike train own
    scratch  lookalike train quickstart, 60 epochs: random initial weights
    sklearn  LogisticRegression() of scikit-learn on `ImageModel.embed` of the images
    timm     timm's train.py with the same weights, AdamW, as many epochs as `own`

Seconds are CPU seconds of everything from image files to the model; evaluation on the test images is not counted,
except timm's, which evaluates once, at the end. `measure` adds to its receipt and leaves out what is in it, so that it
can be stopped. `page` writes docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression

import lookalike
from lookalike import recipe as recipes
from lookalike.data.image_folder import is_image
from lookalike.models import locate
from lookalike.models.serialization import ModelConfig, read_config
from lookalike.reproduce import results_page
from lookalike.run import current_commit, hardware, versions
from lookalike.training.adapt import adapted

COUNTS = (5, 20, 100)  # training images per class
TESTS = 60  # per class, at most
TIMM_LR = 0.0003
RUN_TIMM = (  # the script, after torchvision was made to work beside a CPU build of PyTorch
    "import runpy, sys; from lookalike.models.timm import import_timm; import_timm('script'); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


@dataclass(frozen=True)
class Task:
    """A set of photographs, divided: `folder` holds train/ and test/ with a folder for each class."""

    name: str
    count: int
    classes: int
    folder: Path
    tests: int


def lay_out(source: Path, count: int, draw: int, folder: Path) -> Task:
    """Link the training and the test images of a set. The training images of a smaller `count` are among a larger's."""
    of: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(source.rglob("*")):
        if is_image(path.name):
            of[path.parent.name].append(path)
    tests = 0
    for name, paths in sorted(of.items()):
        order = np.random.default_rng(draw).permutation(len(paths))
        chosen = [paths[place] for place in order]
        rest = chosen[max(COUNTS) :][:TESTS]
        tests += len(rest)
        for split, some in (("train", chosen[:count]), ("test", rest)):
            (folder / split / name).mkdir(parents=True)
            for number, path in enumerate(some):
                (folder / split / name / f"{number:03d}{path.suffix.lower()}").symlink_to(path.resolve())
    return Task(source.name, count, len(of), folder, tests)


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def top1(model: str | Path, task: Task) -> float:
    """The share of the test images that a model recognises."""
    return float(lookalike.evaluate(model, task.folder, split="test").metrics["top1"])


def by_fit(task: Task, model: str, work: Path) -> tuple[float, float]:
    """Top-1 and CPU seconds of `lookalike fit`."""
    start = cpu_seconds()
    run = lookalike.fit(task.folder, model=model, out=work / "fit")
    return float(cpu_seconds() - start), top1(run.path, task)


def by_own(task: Task, model: str, work: Path) -> tuple[float, float]:
    """Top-1 and CPU seconds of `lookalike train own`."""
    start = cpu_seconds()
    run = lookalike.train("own", data=task.folder, out=work / "own", model__init=model)
    return cpu_seconds() - start, top1(run.path, task)


def from_scratch(task: Task, model: str, work: Path) -> tuple[float, float]:
    """Top-1 and CPU seconds of a training from random weights."""
    start = cpu_seconds()
    size = min(32, max(8, task.count * task.classes // 4))
    more = {"training__epochs": 60, "training__batch_size": size, "training__evaluate_every": 20}
    if size < 32:
        more["optimizer__lr"] = 0.004 * size / 64
    run = lookalike.train("quickstart", data=task.folder, out=work / "scratch", **more)
    return cpu_seconds() - start, top1(run.path, task)


def by_sklearn(task: Task, model: str, work: Path) -> tuple[float, float]:
    """Top-1 and CPU seconds of scikit-learn's logistic regression on the model's vectors."""
    start = cpu_seconds()
    loaded = lookalike.load(model)
    paths = sorted(path for path in (task.folder / "train").glob("*/*"))
    classifier = LogisticRegression().fit(loaded.embed(paths), [path.parent.name for path in paths])
    seconds = cpu_seconds() - start
    tests = sorted(path for path in (task.folder / "test").glob("*/*"))
    return seconds, float(classifier.score(loaded.embed(tests), [path.parent.name for path in tests]))


def by_timm(script: Path, task: Task, model: str, work: Path) -> tuple[float, float]:
    """Top-1 of the last epoch and CPU seconds of timm's script, with the weights and preprocessing of the model."""
    config_path, weights_path = locate.find(model)
    config, _ = read_config(ModelConfig, config_path)
    tensors = safetensors.torch.load_file(weights_path)
    (work / "timm").mkdir()
    bare = {key.removeprefix("network."): tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file(bare, work / "timm" / "model.safetensors")
    settings = adapted(recipes.load("own", [f"model.init={model}"]), task.count * task.classes).training
    mean, std = (" ".join(map(str, each)) for each in (config.mean, config.std))
    words = (
        f"{task.folder} --train-split train --val-split test --model {config.name.removeprefix('timm/')} --pretrained "
        f"--pretrained-path {work / 'timm' / 'model.safetensors'} --num-classes {task.classes} --device cpu "
        f"--workers 2 --img-size {config.image_size} --mean {mean} --std {std} "
        f"--opt adamw --lr {TIMM_LR} --weight-decay 0.05 --warmup-epochs 1 --epochs {settings.epochs} "
        f"--batch-size {settings.batch_size} --val-interval {settings.epochs} --output {work / 'timm'} --experiment run"
    )
    start = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", RUN_TIMM, str(script), *shlex.split(words)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"timm's script failed:\n{(done.stdout + done.stderr)[-3000:]}")
    rows = list(csv.DictReader((work / "timm" / "run" / "summary.csv").open()))
    return cpu_seconds() - start, float([row for row in rows if row.get("eval_top1")][-1]["eval_top1"]) / 100


def measure(given: argparse.Namespace) -> None:
    """Measure what the receipt lacks, and write it after each measurement."""
    methods: dict[str, Callable[[Task, str, Path], tuple[float, float]]] = {
        "fit": by_fit,
        "sklearn": by_sklearn,
        "own": by_own,
        "scratch": from_scratch,
    }
    if given.timm:
        methods["timm"] = lambda *more: by_timm(given.timm, *more)
    receipt: dict[str, Any] = {"results": {"rows": []}}
    if given.out.is_file():
        receipt = json.loads(given.out.read_text())
    rows = receipt["results"]["rows"]
    config, fingerprint = locate.describe(given.model)
    lookalike.load(given.model), lookalike.fit, lookalike.train, lookalike.evaluate
    with tempfile.TemporaryDirectory() as name:
        for draw, count in itertools.product(given.draws, given.counts):
            for source in sorted(path for path in given.sets.iterdir() if path.name in given.names):
                task = lay_out(source, count, draw, Path(name) / f"{source.name}-{count}-{draw}")
                about = {"set": task.name, "classes": task.classes, "images": count, "draw": draw}
                done = {row["method"] for row in rows if about.items() <= row.items()}
                for method in (each for each in given.only if each in methods and each not in done):
                    work = Path(name) / "work"
                    work.mkdir()
                    seconds, share = methods[method](task, given.model, work)
                    shutil.rmtree(work)
                    found = {"method": method, "top1": round(share, 4), "cpu_seconds": round(seconds, 1)}
                    rows.append({**about, "tests": task.tests, **found})
                    print(rows[-1], flush=True)
                    receipt |= {
                        "model": config.name,
                        "model_data": config.dataset,
                        "fingerprint": fingerprint,
                        "image_size": config.image_size,
                        "threads": torch.get_num_threads(),
                        "hardware": {**hardware(), "gpu": None},
                        "versions": versions()
                        | {each: version(each) for each in ("scikit-learn", *(["timm"] * bool(given.timm)))},
                        "commit": current_commit(),
                        "command": f"python benchmarks/few_images.py measure SETS --model {Path(given.model).name}",
                        "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    }
                    given.out.write_text(json.dumps(receipt, indent=1) + "\n")


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("sets", type=Path)
    measuring.add_argument("--model", default="default")
    measuring.add_argument("--names", nargs="+", default=["ants_bees", "clothing", "trashnet"])
    measuring.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    measuring.add_argument("--draws", nargs="+", type=int, default=[0], help="seeds of the choice of images")
    measuring.add_argument("--only", nargs="+", default=["fit", "sklearn", "own", "scratch", "timm"])
    measuring.add_argument("--timm", type=Path, help="train.py of timm")
    measuring.add_argument("--out", type=Path, required=True)
    commands.add_parser("page")
    given = parser.parse_args()
    if given.do == "page":
        results_page.write_page(PAGE)
    else:
        measure(given)


if __name__ == "__main__":
    main()
