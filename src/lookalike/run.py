"""The run folder: a recipe, what was measured on the way, and a receipt of how the results came about.

runs/NAME/recipe.yaml     the resolved recipe
          metrics.jsonl   one record per line, as training goes
          events/         the same for TensorBoard
          checkpoint/     training state, to resume from; removed when the run is finished
          model/          the model folder
          report.html     the result, to look at
          receipt.json    commit, versions, hardware, seed, data, seconds, date, command, results

Every file but the metrics is written beside its place and renamed into it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lookalike import __version__
from lookalike.errors import InputError, nearest
from lookalike.files import atomic_write, cannot_write, partial_path
from lookalike.hardware import cores
from lookalike.recipe import Recipe, parse_yaml, validate

FORMER_KEYS = {  # keys of recipes in older run folders: their names today
    "optimizer.head_lr": "head_lr_scale",
    "training.accumulate": "grad_accum_steps",
    "training.ema": "ema_decay",
    "training.freeze_norm": "freeze_bn",
}
LONGEST_NAME = 100  # bytes; file systems take 255, with what is hung on to it


class Run:
    """One run's folder. Make it with `Run.create` or `Run.open`.

    Args:
        path: the folder; its name is the name of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.events_dir = path / "events"
        self.checkpoint_dir = path / "checkpoint"
        self.model_dir = path / "model"
        self.report_path = path / "report.html"
        self.receipt_path = path / "receipt.json"

    @classmethod
    def create(cls, root: Path, name: str, recipe: Recipe, *, overwrite: bool = False) -> Run:
        """Make the folder `root/name` and write the recipe into it.

        Args:
            root: the folder of all runs; made when missing.
            name: the new folder's name: letters, digits, `-`, `_` and `.`; up to 100 bytes.
            recipe: the resolved recipe.
            overwrite: remove a run of that name first. A folder that is not a run is never removed.

        Raises:
            InputError: a name that is no plain folder name, a run that exists already, or a folder that cannot be made.
        """
        if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
            raise InputError(
                f"'{name}' cannot name a run.", "Use letters, digits, '-', '_' and '.', not starting with '.'."
            )
        if len(name.encode()) > LONGEST_NAME:
            raise InputError(
                f"'{name[:20]}...' cannot name a run: it is longer than {LONGEST_NAME} bytes.",
                "Choose a shorter --name.",
            )
        run = cls(Path(root) / name)
        if run.exists:
            if not overwrite:
                raise InputError(
                    f"{run.path}: this run exists already.", "Continue it with --resume, or choose another --name."
                )
            shutil.rmtree(run.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in run.path.iterdir()} - {partial_path(run.recipe_path).name}
        except OSError as error:
            raise cannot_write(run.path, error, remedy="Choose another --root or --name.") from None
        if taken:
            raise InputError(f"{run.path}: this folder exists and is not a run.", "Choose another --name.")
        run.keep_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run that exists.

        Raises:
            InputError: there is no run at `path` (the nearest name beside it is suggested).
        """
        run = cls(Path(path))
        if not run.exists:
            beside = run.path.parent
            names = [p.parent.name for p in beside.glob("*/recipe.yaml")] if beside.is_dir() else []
            raise InputError(
                f"{run.path}: no run here.{nearest(run.path.name, names)}",
                "Point at a folder that 'lookalike train' made; it holds a recipe.yaml.",
            )
        return run

    @property
    def exists(self) -> bool:
        """Whether there is a run in this folder."""
        try:
            return self.recipe_path.is_file()
        except OSError:  # such as a name that is too long for any file
            return False

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe of the run; keys that have another name today are read by their old one too."""
        tree = parse_yaml(self.recipe_path.read_text(encoding="utf-8"), str(self.recipe_path))
        for former, key in FORMER_KEYS.items():
            section, _, old = former.partition(".")
            if isinstance(values := tree.get(section), dict) and old in values:
                values[key] = values.pop(old)
        return validate(Recipe, tree, str(self.recipe_path))

    @property
    def is_finished(self) -> bool:
        """Whether it was measured and its results are written: one that was killed in between goes on with that."""
        return self.receipt_path.is_file() and (
            self.report_path.is_file() or not (self.checkpoint_dir / "last.pt").is_file()
        )

    def keep_recipe(self, recipe: Recipe) -> None:
        """Write another recipe in the place of the run's own, such as one that says where the data are now."""
        atomic_write(self.recipe_path, recipe.to_yaml())
        self.recipe = recipe

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to `metrics.jsonl` and flush it. A half-written last line is removed first.

        Args:
            record: JSON values; `step` (optimiser steps taken so far) is what `truncate` goes by.
        """
        line = json.dumps(record) + "\n"
        with self.metrics_path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())

    def history(self) -> list[dict[str, Any]]:
        """The records logged so far, oldest first; a last line that was cut off by a crash is left out.

        Raises:
            InputError: another line is not JSON.
        """
        if not self.metrics_path.is_file():
            return []
        records = []
        lines = self.metrics_path.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise InputError(f"{self.metrics_path}: line {number} is not JSON.", "Remove that line.") from None
        return records

    def truncate(self, step: int) -> None:
        """Drop the records whose `step` is past this one, as a run resumed from an older checkpoint must."""
        kept = [record for record in self.history() if record.get("step", 0) <= step]
        atomic_write(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))

    def write_receipt(
        self,
        results: dict[str, Any],
        *,
        seconds: float,
        data: dict[str, Any],
        seed: int,
        device: str,
        command: str,
        gpu: str | None = None,
        sources: str | None = None,
        **extra: Any,
    ) -> None:
        """Write `receipt.json`: the results and everything one needs to believe them.

        Args:
            results: what was measured, by name; finite numbers only.
            seconds: wall-clock time of the training, over all its sittings.
            data: the data set's name, fingerprint and counts.
            seed: the recipe's seed.
            device: the device trained on, such as "cpu".
            command: the command line that made the run.
            gpu: the name of the GPU, where one was used.
            sources: what `commit()` said when the run began; by default what it says now.
            extra: more fields, under names of their own.

        Raises:
            ValueError: a number that is not finite, or an `extra` field that the receipt has already.
        """
        receipt: dict[str, Any] = {
            "name": self.path.name,
            "results": results,
            "data": data,
            "seed": seed,
            "seconds": round(seconds, 3),
            "device": device,
            "hardware": {**hardware(), "gpu": gpu},
            "versions": versions(),
            "commit": sources or commit(),
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if twice := sorted(receipt.keys() & extra.keys()):
            raise ValueError(f"the receipt has a field '{twice[0]}' of its own")
        text = json.dumps({**receipt, **extra}, indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(self.receipt_path, text + "\n")

    def receipt(self) -> dict[str, Any]:
        """The receipt as `write_receipt` wrote it.

        Raises:
            InputError: the run has none yet (it is not finished), or it is not JSON.
        """
        try:
            receipt: dict[str, Any] = json.loads(self.receipt_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.path}: this run has no receipt: it is not finished.", "Finish it with --resume."
            ) from None
        except ValueError as error:
            raise InputError(f"{self.receipt_path}: not JSON ({error}).", "Train the run again.") from None
        return receipt


def commit() -> str:
    """The git commit of the running Lookalike sources, `+dirty` when they differ from it, "unknown" outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "recipe.py") is None:  # an installed copy inside someone else's checkout
        return "unknown"
    head = git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if git("status", "--porcelain", "--", ".") else "")


def versions() -> dict[str, str]:
    """Versions of Python, Lookalike and the libraries that the numbers depend on; none of them is imported."""
    found = {"python": platform.python_version(), "lookalike": __version__}
    for package in ("torch", "numpy", "pillow"):
        found[package] = importlib.metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """The machine: `cpu` (model), `cores` (usable by this process), `memory_gib`, `system`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
