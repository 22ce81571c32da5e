"""`training.precision: auto`: what is chosen, that nothing else changes, and that a resumed run keeps it."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookalike.models.registry import create_model
from lookalike.recipe import Training
from lookalike.training import precision
from lookalike.training.distributed import DistributedContext
from lookalike.training.precision import choose_precision, probe_precision

CPU = torch.device("cpu")
ALONE = DistributedContext(0, 1, CPU)


class Slow(nn.Module):
    """Waits, in the precision given only."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x.mean((2, 3)))
        if outputs.dtype == self.dtype:
            time.sleep(0.05)
        return outputs


@pytest.mark.parametrize(("slow", "chosen"), [(torch.bfloat16, "float32"), (torch.float32, "bf16")])
def test_the_faster_precision_is_chosen(slow: torch.dtype, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.0)
    probe = choose_precision(Training(), Slow(slow), 8, ALONE)
    assert probe.precision == chosen
    other = "bf16" if chosen == "float32" else "float32"
    assert probe.milliseconds[other] >= 50  # type: ignore[index]


def test_float32_is_chosen_when_both_are_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[Any] = [1.0, 0.96]
    monkeypatch.setattr(precision, "_seconds", lambda *_: times.pop(0))
    assert probe_precision(nn.Identity(), 8, CPU, 4).precision == "float32"


@pytest.mark.parametrize("name", ["bf16", "float32"])
def test_a_precision_named_in_the_recipe_is_not_measured(name: str) -> None:
    probe = choose_precision(Training(precision=name), nn.Identity(), 8, ALONE)  # type: ignore[arg-type]
    assert (probe.precision, probe.milliseconds) == (name, {})


def test_measuring_changes_neither_network_nor_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.0)
    network = create_model("resnet18", 3, {"stem": "patch", "width": 8})
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    probe_precision(network, 32, CPU, 4)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
