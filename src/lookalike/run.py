"""The folder of a run.

runs/NAME/recipe.yaml     the complete recipe
          metrics.jsonl   metrics during training, one JSON record per line
          checkpoint/     training state to resume from; removed when the run is finished
          model/          the trained model
          report.html     the results, with charts and images
          receipt.json    results, recipe seed, data, commit, versions, hardware, times, command

All files but the metrics are written to a temporary file and renamed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
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


class Run:
    """A run folder, as `lookalike.train` returns it; `Run.open` opens an earlier one.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoint_dir = path / "checkpoint"
        self.model_dir = path / "model"
        self.report_path = path / "report.html"
        self.receipt_path = path / "receipt.json"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Make the folder, with the recipe in it; folders above it are made too.

        Raises:
            InputError: the folder holds a run or other files, or cannot be made.
        """
        run = cls(path)
        if run.exists:
            raise InputError(f"{path}: this run exists already.", "Continue it with --resume, or choose another --out.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = {each.name for each in path.iterdir()} - {partial_path(run.recipe_path).name}
        except OSError as error:
            raise cannot_write(path, error, remedy="Choose another --out.") from None
        if taken:
            raise InputError(f"{path}: this folder exists and is not a run.", "Choose another --out.")
        run.keep_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the run in a folder.

        Raises:
            InputError: there is none.
        """
        run = cls(Path(path))
        if not run.exists:
            beside = run.path.parent
            names = [p.parent.name for p in beside.glob("*/recipe.yaml")] if beside.is_dir() else []
            raise InputError(
                f"{run.path}: no run here.{nearest(run.path.name, names)}",
                "Give a folder made by 'lookalike train'; it holds a recipe.yaml.",
            )
        return run

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name or self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        try:
            return self.recipe_path.is_file()
        except OSError:  # such as a name that is too long
            return False

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run; former names of keys are accepted."""
        tree = parse_yaml(self.recipe_path.read_text(encoding="utf-8"), str(self.recipe_path))
        for former, key in FORMER_KEYS.items():
            section, _, old = former.partition(".")
            if isinstance(values := tree.get(section), dict) and old in values:
                values[key] = values.pop(old)
        return validate(Recipe, tree, str(self.recipe_path))

    @property
    def is_finished(self) -> bool:
        """Whether all results are written. A run that was killed while they were written is not finished."""
        return self.receipt_path.is_file() and (
            self.report_path.is_file() or not (self.checkpoint_dir / "last.pt").is_file()
        )

    def keep_recipe(self, recipe: Recipe) -> None:
        """Write the recipe into the folder, replacing the one that is there."""
        atomic_write(self.recipe_path, recipe.to_yaml())
        self.recipe = recipe

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to `metrics.jsonl`, after removing an incomplete last line.

        Args:
            record: JSON values, with the number of optimizer steps taken as "step".
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
        """The logged records, oldest first, without an incomplete last line.

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
        """Remove the records after this step, for a run that continues from an older checkpoint."""
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
        commit: str | None = None,
        **extra: Any,
    ) -> None:
        """Write `receipt.json`: the results and how they were obtained.

        Args:
            results: measured values by name; finite numbers only.
            seconds: wall-clock seconds of training, over all sessions of the run.
            data: name, fingerprint and counts of the data set.
            seed: the recipe's seed.
            device: the device trained on, such as "cpu".
            command: the command line of the run.
            gpu: name of the GPU, if one was used.
            commit: `current_commit()` when the run was started; by default its value now.
            extra: more fields.

        Raises:
            ValueError: a number is not finite, or an extra field has the name of another.
        """
        receipt: dict[str, Any] = {
            "name": self.name,
            "results": results,
            "data": data,
            "seed": seed,
            "seconds": round(seconds, 3),
            "device": device,
            "hardware": {**hardware(), "gpu": gpu},
            "versions": versions(),
            "commit": commit or current_commit(),
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if twice := sorted(receipt.keys() & extra.keys()):
            raise ValueError(f"the receipt has a field '{twice[0]}' already")
        text = json.dumps({**receipt, **extra}, indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(self.receipt_path, text + "\n")

    def receipt(self) -> dict[str, Any]:
        """The content of `receipt.json`; see `write_receipt`.

        Raises:
            InputError: the run is not finished, or the file is damaged.
        """
        try:
            receipt: dict[str, Any] = json.loads(self.receipt_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.path}: this run is not finished: it has no receipt.json.", "Finish it with --resume."
            ) from None
        except ValueError as error:
            raise InputError(f"{self.receipt_path}: not JSON ({error}).", "Train the run again.") from None
        return receipt


def current_commit() -> str:
    """Git commit of the running sources, with "+dirty" if they differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "recipe.py") is None:  # an installed copy inside another repository
        return "unknown"
    head = git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if git("status", "--porcelain", "--", ".") else "")


def versions() -> dict[str, str]:
    """Versions of Python, Lookalike and the libraries that results depend on, without importing them."""
    found = {"python": platform.python_version(), "lookalike": __version__}
    for package in ("torch", "numpy", "pillow"):
        found[package] = importlib.metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """The machine: CPU model, cores usable by this process, memory in GiB, operating system."""
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
