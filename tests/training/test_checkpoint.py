"""What a run goes on from: exact to the last bit, whole or absent, and refused by name when it is anything else."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.recipe import Optimizer
from lookalike.training import checkpoint
from lookalike.training.checkpoint import State, load_best, load_last, save_best, save_last
from lookalike.training.optim import ModelEma, make_optimizer

DATA = "fingerprint of training and validation"
SGD = Optimizer(name="sgd", lr=0.1, weight_decay=0.01)
ADAMW = Optimizer(name="adamw", lr=0.01, weight_decay=0.01)


class Part:
    """A network with its optimiser and average, and steps that depend on nothing but their number."""

    def __init__(self, settings: Optimizer = SGD, ema: float = 0.9, seed: int = 0, width: int = 7) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
        self.loss = nn.Linear(2, 2)  # any loss with weights of its own
        self.optimizer = make_optimizer(self.network, self.loss, settings)
        self.average = ModelEma(self.network, ema) if ema else None

    def step(self, number: int) -> None:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(number))
        self.network(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.network, number)

    def save(self, folder: Path, state: State, data: str = DATA) -> Path:
        save_last(folder, state, self.network, self.loss, self.optimizer, self.average, data)
        return folder / "last.pt"

    def load(self, folder: Path, data: str = DATA) -> State | None:
        return load_last(folder, self.network, self.loss, self.optimizer, self.average, data)

    def bits(self) -> dict[str, Any]:
        """Everything that the next step depends on, as bytes."""
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        if self.average:
            parts["average"] = self.average.network.state_dict()
        return {name: _bytes(part) for name, part in parts.items()}


def _bytes(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.numpy().tobytes()
    return {key: _bytes(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def refusal(part: Part, folder: Path, data: str = DATA) -> InputError:
    with pytest.raises(InputError) as caught:
        part.load(folder, data)
    assert str(folder / "last.pt") in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_run_goes_on_from_it_as_if_nothing_had_been(settings: Optimizer, ema: float, folder: Path) -> None:
    whole = Part(settings, ema)
    for number in range(5):
        whole.step(number)
    state = State(5, 0.25, 3, 1, 1.5, 2.5, False)
    whole.save(folder, state)
    resumed = Part(settings, ema, seed=1)
    assert resumed.bits() != whole.bits()
    assert resumed.load(folder) == state
    assert resumed.bits() == whole.bits()
    for number in range(5, 10):
        whole.step(number)
        resumed.step(number)
    assert resumed.bits() == whole.bits()


def test_numbers_that_are_no_numbers_come_back_too(folder: Path) -> None:
    state = State(seconds=0.1 + 0.2, best_score=1 / 3, stopped_early=True)
    part = Part()
    with torch.no_grad():
        part.network[0].bias[:3] = torch.tensor([float("inf"), float("-inf"), -0.0])
    part.save(folder, state)
    again = Part(seed=1)
    assert again.load(folder) == state
    assert again.bits() == part.bits()


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(folder: Path) -> None:
    part = Part()
    before = part.bits()
    assert part.load(folder) is None
    folder.mkdir()
    (folder / "last.pt.partial").write_bytes(b"half")  # what kill -9 leaves
    assert part.load(folder) is None
    assert part.bits() == before


def test_the_next_one_takes_the_place_of_the_last(folder: Path) -> None:
    part = Part()
    part.save(folder, State(1))
    (folder / "last.pt.partial").write_bytes(b"half")  # of one that was killed
    part.save(folder, State(2))
    assert [path.name for path in folder.iterdir()] == ["last.pt"]
    assert part.load(folder) == State(2)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import Part, State
part, folder = Part(), Path(sys.argv[1])
part.save(folder, State(1))
part.step(1)
place = sys.argv[3]
def at(event, arguments):
    if event == place and str(arguments[0]).endswith("last.pt.partial"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(at)
part.save(folder, State(2))
"""


@pytest.mark.parametrize("place", ["open", "os.rename"])
def test_killed_while_it_writes_the_former_one_stays(place: str, folder: Path) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), here, place], check=False)
    assert done.returncode == -9
    assert (folder / "last.pt.partial").exists() == (place == "os.rename")
    resumed = Part(seed=1)
    assert resumed.load(folder) == State(1)
    assert resumed.bits()["network"] == Part().bits()["network"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_on_a_full_disk_the_former_one_stays(folder: Path) -> None:
    part = Part()
    part.save(folder, State(1))
    (folder / "last.pt.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"last\.pt"):
        part.save(folder, State(2))
    assert [path.name for path in folder.iterdir()] == ["last.pt"]
    assert part.load(folder) == State(1)


def test_cut_anywhere_it_is_refused(folder: Path) -> None:
    path = Part().save(folder, State(1))
    content = path.read_bytes()
    for length in {0, 1, 4, len(content) // 2, len(content) - 1, *range(100, len(content), 499)}:
        path.write_bytes(content[:length])
        refusal(Part(), folder)


def test_a_single_bit_that_has_flipped_is_found(folder: Path) -> None:
    whole = Part()
    path = whole.save(folder, State(1))
    content = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(300):
        place, bit = dice.randrange(len(content)), dice.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        part = Part(seed=1)
        try:
            state = part.load(folder)
        except InputError:
            refused += 1
        else:  # it was in the padding or in a date
            assert (state, part.bits()) == (State(1), whole.bits())
    assert refused > 150


class Evil:
    """Would be run by whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch of before 1.6"])
def test_a_pickle_is_never_run(kind: str, folder: Path, tmp_path: Path) -> None:
    path = Part().save(folder, State(1))
    mark = tmp_path / "was run"
    content = {**torch.load(path, weights_only=True), "data": Evil(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    assert "weights_only" not in refusal(Part(), folder).message  # PyTorch advises to run it
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # a trap it is
    assert mark.exists()


def test_whole_modules_are_refused_like_any_other_code(folder: Path) -> None:
    folder.mkdir()
    torch.save(Part().network, folder / "last.pt")
    refusal(Part(), folder)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [1, 2], "hello", None, 7, {}, nn.Linear(2, 2).state_dict(), {"format": 2}, {1: 2}],
    ids=lambda content: type(content).__name__,
)
def test_a_foreign_file_is_refused(content: Any, folder: Path) -> None:
    folder.mkdir()
    torch.save(content, folder / "last.pt")
    refusal(Part(), folder)


@pytest.mark.parametrize("change", ["format", "step", "field", "shape", "name", "no average", "groups"])
def test_what_does_not_fit_is_refused(change: str, folder: Path) -> None:
    path = Part().save(folder, State(1))
    content = torch.load(path, weights_only=True)
    if change == "format":
        content["format"] = 99
    elif change == "step":
        del content["state"]
    elif change == "field":
        content["state"]["mood"] = 1
    elif change == "shape":
        content["network"]["0.weight"] = torch.zeros(2, 2)
    elif change == "name":
        content["network"]["9.weight"] = content["network"].pop("0.weight")
    elif change == "no average":
        content["average"] = None
    else:
        content["optimizer"]["param_groups"].pop()
    torch.save(content, path)
    message = refusal(Part(), folder).message
    assert ("has format 99, not 2" if change == "format" else "cannot be read") in message


def test_other_data_are_refused_with_both_ways_out(folder: Path) -> None:
    part = Part()
    part.save(folder, State(1))
    error = refusal(part, folder, data="others")
    assert "--data" in error.remedy
    assert "--out" in error.remedy


def test_the_best_weights_come_back_bit_by_bit(folder: Path) -> None:
    network = Part().network.to(memory_format=torch.channels_last)
    weights = deepcopy(network.state_dict())
    weights["strided"] = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_best(folder, weights)
    (folder / "best.safetensors.partial").write_bytes(b"half")  # of a later one that was killed
    assert _bytes(load_best(folder)) == _bytes({name: tensor.contiguous() for name, tensor in weights.items()})


def test_a_single_bit_of_the_best_weights_that_has_flipped_is_found(folder: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in Part().network.state_dict().items()}
    save_best(folder, weights)
    path = folder / "best.safetensors"
    content = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(300):
        place, bit = dice.randrange(len(content)), dice.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            read = load_best(folder)
        except InputError:
            refused += 1
        else:  # it was in the padding
            assert _bytes(read) == _bytes(weights)
    assert refused > 290


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "missing", "pickle", "no checksum", "other weights"])
def test_best_weights_that_are_none_are_named(damage: str, folder: Path) -> None:
    weights = Part().network.state_dict()
    save_best(folder, weights)
    path = folder / "best.safetensors"
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save(weights, path)
    elif damage == "no checksum":
        save_file(weights, path)
    elif damage == "other weights":
        with safe_open(path, "pt") as file:
            sum_of_them = file.metadata()
        save_file({**weights, "0.bias": weights["0.bias"] + 1}, path, sum_of_them)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[:-9], "empty": b"", "garbage": os.urandom(400)}[damage])
    with pytest.raises(InputError, match=r"best\.safetensors"):
        load_best(folder)


def test_the_content_of_a_checkpoint_is_what_its_format_says(folder: Path) -> None:
    """Keys of the state with a default, as `precision`, may be missing in files of older versions of the format."""
    content = torch.load(Part().save(folder, State()), weights_only=True)
    assert checkpoint.FORMAT == 2
    assert sorted(content) == ["average", "data", "format", "loss", "network", "optimizer", "state"]
    assert sorted(content["state"]) == [
        "best_score", "best_step", "cpu_seconds", "precision", "seconds", "stale", "start", "step", "stopped_early",
    ]  # fmt: skip
