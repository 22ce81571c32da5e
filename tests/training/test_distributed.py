"""One run in two processes: it ends as one process would end it, and only one of them speaks and writes.

Real `torchrun`, on the CPU with gloo.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lookalike.errors import InputError
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.distributed import DistributedContext, init_distributed
from lookalike.training.run import train

# No dropout: each process drops units of its own. Everything else that is random is on.
RECIPE = """
data:
  image_size: 32
  augment: {crop: resized, flip: 0.5, cutout: 0.2, brightness: 0.2, mixup: 0.4, cutmix: 1.0, mix_probability: 0.7}
model: {name: cubs_resnet_2, options: {stem: patch, width: 8, features: 32, tokens: 8}}
optimizer: {lr: 0.02, clip_norm: 5}
training:
  {epochs: 5, batch_size: 8, ema_decay: 0.9, resolution: [[0, 24], [0.5, 32]], checkpoint_seconds: 0, device: cpu}
"""
STEPS = 20  # 5 epochs of 32 pictures

LAUNCHED = """
import os, sys
from pathlib import Path
Path(sys.argv.pop(1), os.environ["RANK"]).write_text(str(os.getpid()))
from lookalike.cli.main import run
run()
"""


class Torchrun:
    """The command line in two processes that share a run."""

    def __init__(self, folder: Path, album: Path) -> None:
        self.folder = folder
        (folder / "launched.py").write_text(LAUNCHED)
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "processes").mkdir()
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOOKALIKE_CACHE": str(folder / "cache")}
        self.recipe = Recipe.from_yaml(RECIPE, overrides=[f"data.source={album}"])

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        for file in (self.folder / "processes").iterdir():
            file.unlink()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        verb = ["train", str(self.folder / "recipe.yaml"), f"data.source={self.recipe.data.source}", *more]
        where = ["--out", str(self.folder / "runs" / name), "--keep-checkpoint"]
        command = [*launch, str(self.folder / "launched.py"), str(self.folder / "processes"), *verb, *where]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=self.environment)

    def process_of(self, rank: int) -> int:
        return int((self.folder / "processes" / str(rank)).read_text())

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / name)


@pytest.fixture(scope="module")
def torchrun(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Torchrun:
    return Torchrun(tmp_path_factory.mktemp("torchrun"), album)


def parameters(run: Run) -> dict[str, torch.Tensor]:
    """The trained ones and their averages. Running statistics of norms are not among them: see below."""
    last = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)
    parts = {"network": last["network"], "average": last["average"]}
    return {
        f"{part}/{name}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
        if "running" not in name and "tracked" not in name
    }


def test_two_processes_stop_together_and_end_as_one_would(torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM to the process that does not lead, then `--resume`.

    One process that accumulates two batches sees the same halves of each batch: the order of the images, augmentation
    and mixing are the same, so are the gradients, and halving is exact in binary numbers. So the parameters are equal.
    Running statistics of batch norms are those of the leading process's halves, where the one process has seen both;
    so what is measured is not equal, and not compared.
    """
    run = torchrun.run("both")
    process = torchrun.start("both")
    try:
        while process.poll() is None and len(run.history()) < 4:
            time.sleep(0.01)
        os.kill(torchrun.process_of(1), signal.SIGTERM)
        said, complaints = process.communicate()
    finally:
        process.kill()
    assert process.returncode != 0
    assert "top-1" not in said
    assert "exitcode  : 143" in complaints or "exitcode: 143" in complaints, complaints
    assert not run.receipt_path.exists()
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(torchrun.process_of(rank), 0)
    stopped = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)["state"]["step"]
    assert 3 <= stopped < STEPS

    said, complaints = torchrun.start("both", "--resume").communicate()
    assert said.count("top-1") == 1, complaints
    assert complaints.count("measuring") == 1
    assert complaints.count(f"of {STEPS}  top-1") == sum(STEPS * e // 5 > stopped for e in range(1, 6))
    records = run.history()
    assert sorted(r["step"] for r in records if r["kind"] == "train") == [*range(1, STEPS + 1)]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [4, 8, 12, 16, 20]
    assert not list(run.path.rglob("*.partial"))
    receipt = run.receipt()
    assert (receipt["processes"], receipt["batch_size"], receipt["steps"]) == (2, 8, STEPS)
    assert (run.model_dir / "model.safetensors").exists()
    assert run.report_path.exists()

    monkeypatch.setenv("LOOKALIKE_CACHE", torchrun.environment["LOOKALIKE_CACHE"])
    halves = torchrun.recipe.model_copy(
        update={"training": torchrun.recipe.training.model_copy(update={"grad_accum_steps": 2})}
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(halves, out=torchrun.folder / "runs" / "alone", keep_checkpoint=True)
    finally:
        torch.set_num_threads(threads)
    ours, theirs = parameters(run), parameters(alone)
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different
    losses = [[r["loss"] for r in each.history() if r["kind"] == "train"] for each in (run, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_mistake_is_said_once_and_leaves_nothing(torchrun: Torchrun) -> None:
    _, complaints = torchrun.start("mistake", "model.name=resnet18", "data.source=nowhere").communicate()
    assert complaints.count("error: 'nowhere': no data set of this name") == 1
    assert "Error:" not in complaints.replace("ChildFailedError:", "")  # no traceback of the other process
    assert "exitcode  : 2" in complaints
    assert not torchrun.run("mistake").path.exists()


STATISTICS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from lookalike.training.distributed import init_distributed
context = init_distributed("cpu")
torch.manual_seed(context.rank)
network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
for _ in range(context.rank + 1):
    network(torch.randn(8, 3, 5, 5) + context.rank)
before = {name: buffer.clone() for name, buffer in network.named_buffers()}
weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
context.broadcast_buffers(network)
assert all(torch.equal(weight, weights[name]) for name, weight in network.named_parameters())
after = dict(network.named_buffers())
for when, buffers in (("before", before), ("after", after)):
    save_file(buffers, Path(sys.argv[1], f"{when}-{context.rank}.safetensors"))
"""


def test_statistics_are_the_leading_processes_once_they_are_shared(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text(STATISTICS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "statistics.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        [load_file(tmp_path / f"{when}-{rank}.safetensors") for rank in (0, 1)] for when in ("before", "after")
    )
    assert sorted(before[0]) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    for name, of_the_leading in before[0].items():
        assert not torch.equal(of_the_leading, before[1][name]), name  # each its own
        for rank in (0, 1):
            assert torch.equal(of_the_leading, after[rank][name]), (name, rank)


# what a single process answers


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    context = init_distributed("cpu")
    assert context == DistributedContext(0, 1, torch.device("cpu"))
    assert context.is_main_process
    assert (context.max(0), context.max(15), context.mean(0.1 + 0.2)) == (0, 15, 0.1 + 0.2)
    assert context.main_process_first(lambda: 7) == 7
    context.barrier()
    with pytest.raises(InputError, match="nothing"):
        context.main_process_first(_fail)


def _fail() -> Any:
    raise InputError("nothing.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it exists")
def test_a_device_that_is_not_there_is_refused_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(InputError, match="'cuda'"):
            init_distributed("cuda")
