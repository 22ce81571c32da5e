"""The promise: stopped at any moment and resumed, a run ends with the same bits as one that was left alone.

Real processes of the command line, with everything on that could forget something; `test_loop` stops the loop alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.run import Run

RECIPE = """
data:
  image_size: 32
  augment: {crop: resized, flip: 0.5, cutout: 0.2, brightness: 0.2, mixup: 0.4, cutmix: 1.0, mix_probability: 0.7}
model: {name: cubs_resnet_2, options: {stem: patch, width: 8, features: 32, tokens: 8, dropout: 0.2}}
optimizer: {name: adamw, lr: 0.01, clip_norm: 5}
training: {epochs: 3, batch_size: 8, precision: float32, grad_accum_steps: 2,
  ema_decay: 0.9, resolution: [[0, 24], [0.5, 32]], device: cpu}
"""
STEPS = 12  # 3 epochs of 32 pictures

# Loads everything once; then each line it reads makes a new process that runs the command line. That one sends itself a
# signal when it opens or renames a file for the n-th time.
FORGE = """
import json, os, sys
import torch._dynamo
import lookalike.data.registry, lookalike.training.run
from lookalike.cli import main
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        left = order["count"]
        def watch(what, arguments):
            global left
            if what == order["event"] and str(arguments[0]).endswith(order["file"]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), order["number"])
        sys.addaudithook(watch)
        sys.argv = ["lookalike", *order["arguments"]]
        main.run()
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Bench:
    """A folder with a recipe, pictures and runs, and the means to start and stop them."""

    def __init__(self, folder: Path, album: Path) -> None:
        self.folder, self.album, self.keeps = folder, album, True
        (folder / "recipe.yaml").write_text(RECIPE)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOOKALIKE_CACHE": str(folder / "cache")}
        command = [sys.executable, "-c", FORGE]
        pipe = subprocess.PIPE
        self.forge = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self.environment)

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / name)

    def arguments(self, name: str) -> list[str]:
        here = ["--out", str(self.folder / "runs" / name), "--data", str(self.album)]
        here += ["--keep-checkpoint"] * self.keeps
        return ["train", str(self.folder / "recipe.yaml"), "training.checkpoint_seconds=0", *here, "--resume"]

    def stop_at(self, name: str, number: int, event: str, file: str, count: int = 1) -> int:
        """Start or resume a run, and let it signal itself at that point; the exit code."""
        output = self.folder / "output.txt"
        order = {"event": event, "file": file, "count": count, "number": int(number), "output": str(output)}
        assert self.forge.stdin is not None
        assert self.forge.stdout is not None
        print(json.dumps({**order, "arguments": self.arguments(name)}), file=self.forge.stdin, flush=True)
        code = int(self.forge.stdout.readline())
        said = output.read_text()
        assert "Traceback" not in said, said
        assert ("report  " in said) == (code == 0), said
        return code

    def finish(self, name: str) -> Run:
        assert self.stop_at(name, 0, "never", "", 1) == 0
        return self.run(name)

    def alone(self, name: str, number: int, until: Callable[[list[dict[str, Any]]], bool]) -> int:
        """The command as a person gives it, sent a signal once the run's records look like that; the exit code."""
        command = [sys.executable, "-m", "lookalike.cli.main", *self.arguments(name)]
        run = self.run(name)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self.environment) as process:
            try:
                while process.poll() is None and not until(run.history()):
                    time.sleep(0.002)
                process.send_signal(number)
                _, said = process.communicate()
            finally:
                process.kill()
        assert "Traceback" not in said, said
        told = re.search(
            r"^stopped at step (\d+) of 12; continue with: lookalike train .*--resume$", said, re.MULTILINE
        )
        assert (told is None) == (process.returncode not in (130, 143)), said
        assert told is None or int(told[1]) == step_of(run)
        return process.returncode


@pytest.fixture(scope="module")
def bench(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"), album)
    yield bench
    bench.forge.kill()
    bench.forge.communicate()


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    return bench.finish("undisturbed")


def places(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in records]


def step_of(run: Run) -> int:
    return int(torch.load(run.checkpoint_dir / "last.pt", weights_only=True)["state"]["step"])


def essence(run: Run) -> dict[str, Any]:
    """All that a run leaves behind, without times, its name and how it was called."""
    last = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)
    tensors = {"network": last["network"], "average": last["average"], **last["optimizer"]["state"]}
    receipt = run.receipt()
    return {
        "model": {path.name: path.read_bytes() for path in run.model_dir.iterdir()},
        "best": (run.checkpoint_dir / "best.safetensors").read_bytes(),
        "last": {key: {name: t.numpy().tobytes() for name, t in part.items()} for key, part in tensors.items()},
        "state": {key: value for key, value in last["state"].items() if "seconds" not in key},
        "groups": last["optimizer"]["param_groups"],
        "records": [{k: v for k, v in r.items() if k != "images_per_second"} for r in run.history()],
        "results": receipt["results"],
        "said of it": {key: receipt[key] for key in ("data", "seed", "steps", "epochs", "batch_size", "parameters")},
        "recipe": run.recipe,
        "files": sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if "events" not in p.parts),
    }


def assert_same(run: Run, undisturbed: Run) -> None:
    ours, theirs = essence(run), essence(undisturbed)
    for key in theirs:
        assert ours[key] == theirs[key], key


def test_the_undisturbed_run_uses_everything(undisturbed: Run) -> None:
    records = undisturbed.history()
    expected = [("train", step) for step in range(1, STEPS + 1)] + [("eval", step) for step in (4, 8, 12)]
    assert sorted(places(records)) == sorted(expected)
    assert {r["size"] for r in records if r["kind"] == "train"} == {24, 32}
    assert torch.load(undisturbed.checkpoint_dir / "last.pt", weights_only=True)["average"] is not None
    assert not list(undisturbed.path.rglob("*.partial"))


def test_stopped_from_outside_by_ctrl_c_kill_and_sigterm(bench: Bench, undisturbed: Run) -> None:
    run = bench.run("outside")
    assert bench.alone("outside", signal.SIGINT, lambda records: len(records) >= 1) == 130  # early
    assert 1 <= step_of(run) == run.history()[-1]["step"]
    assert bench.alone("outside", signal.SIGKILL, lambda records: records[-1]["step"] >= 5) == -9  # mid-epoch
    assert step_of(run) >= 4
    assert bench.alone("outside", signal.SIGTERM, lambda records: ("eval", 8) in places(records)) == 143  # evaluated
    assert 8 <= step_of(run) == run.history()[-1]["step"] < STEPS
    assert_same(bench.finish("outside"), undisturbed)


def test_killed_where_it_hurts(bench: Bench, undisturbed: Run) -> None:
    """Between writing a file and renaming it, and between two files that belong together."""
    run = bench.run("kill-9")
    for event, file, count, step in [
        ("os.rename", "last.pt.partial", 1, None),  # the first checkpoint is not there yet
        ("os.rename", "last.pt.partial", 3, 2),  # the third is not, the second is
        ("open", "metrics.jsonl", 2, 2),  # step 3 is taken, and neither said nor saved
        ("os.rename", "best.safetensors.partial", 1, 3),  # evaluated after step 4, and not kept
        ("open", "last.pt.partial", 1, 3),  # kept, and no checkpoint of it
        ("os.rename", "config.json.partial", 1, STEPS),  # at its end: half a model folder
        ("os.rename", "receipt.json.partial", 1, STEPS),  # the model is there, the receipt not
    ]:
        assert bench.stop_at("kill-9", signal.SIGKILL, event, file, count) == -9, (event, file)
        assert not run.receipt_path.exists()
        if step is None:
            assert not (run.checkpoint_dir / "last.pt").exists()
        else:
            assert step_of(run) == step, (event, file)
    assert_same(bench.finish("kill-9"), undisturbed)


def test_stopped_before_the_first_step_and_after_the_last(bench: Bench, undisturbed: Run) -> None:
    run = bench.run("ends")
    assert bench.stop_at("ends", signal.SIGTERM, "os.rename", "metrics.jsonl.partial") == 143  # before the first step
    assert not run.checkpoint_dir.exists()
    assert bench.stop_at("ends", signal.SIGINT, "open", "best.safetensors.partial", 1) == 130  # in an evaluation
    assert step_of(run) == 4
    assert bench.stop_at("ends", signal.SIGTERM, "open", "model.safetensors.partial") == 143  # while it is measured
    assert not run.receipt_path.exists()
    assert_same(bench.finish("ends"), undisturbed)
    before = run.receipt_path.read_bytes()
    assert_same(bench.finish("ends"), undisturbed)  # a finished one that is resumed is left as it is
    assert run.receipt_path.read_bytes() == before


def test_killed_while_its_checkpoint_is_removed(bench: Bench, undisturbed: Run) -> None:
    bench.keeps = False
    try:
        run = bench.run("tidy")
        assert bench.stop_at("tidy", signal.SIGKILL, "os.rename", "report.html.partial") == -9  # the receipt is there
        assert step_of(run) == STEPS
        assert bench.stop_at("tidy", signal.SIGKILL, "os.remove", "best.safetensors") == -9
        assert run.is_finished
        bench.finish("tidy")
    finally:
        bench.keeps = True
    ours, theirs = ({p.name: p.read_bytes() for p in r.model_dir.iterdir()} for r in (run, undisturbed))
    assert ours == theirs


def test_with_the_data_and_the_run_moved_it_ends_with_the_same_bits(
    bench: Bench, album: Path, undisturbed: Run, tmp_path: Path
) -> None:
    """A copy of the pictures, with new times, under the same last name, for that name is in the model folder."""
    assert bench.stop_at("moved", signal.SIGINT, "os.rename", "last.pt.partial", 5) == 130
    copy = tmp_path / "elsewhere" / album.name
    for path in (p for p in album.rglob("*") if p.is_file()):
        place = copy / path.relative_to(album)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        os.utime(place, (1e9, 1e9))
    former, bench.album = bench.album, copy
    bench.run("moved").path.rename(bench.run("moved-too").path)
    try:
        run = bench.finish("moved-too")
        ours, theirs = essence(run), essence(undisturbed)
        assert run.recipe.data.source == str(copy)
        for each in (ours, theirs):
            each["said of it"]["data"].pop("fingerprint")  # it knows the times of files
            each.pop("recipe")
        assert ours == theirs
    finally:
        bench.album = former


def test_stopped_in_the_last_checkpoint_it_does_not_go_on_to_measure(bench: Bench) -> None:
    assert bench.stop_at("last", signal.SIGINT, "os.rename", "last.pt.partial", STEPS) == 130
    assert step_of(bench.run("last")) == STEPS
    assert not bench.run("last").model_dir.exists()


def test_killed_while_the_run_is_made(bench: Bench) -> None:
    assert bench.stop_at("unborn", signal.SIGKILL, "os.rename", "recipe.yaml.partial") == -9
    assert bench.stop_at("unborn", signal.SIGKILL, "os.rename", "last.pt.partial", 2) == -9
    assert step_of(bench.run("unborn")) == 1
