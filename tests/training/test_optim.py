"""Optimiser groups, schedules and averages, against what their formulas say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lookalike.models.registry import create_model
from lookalike.recipe import Optimizer, Schedule
from lookalike.training.optim import ModelEma, freeze_bn, lr_at, make_optimizer, parameter_groups, set_lr


def test_norms_biases_and_scales_are_not_decayed() -> None:
    network = create_model("cubs_resnet_1", 5, {"width": 8})
    groups = parameter_groups(network, nn.Identity(), Optimizer(weight_decay=0.1))
    names = {id(p): name for name, p in network.named_parameters()}
    decayed = [p for group in groups if group["weight_decay"] == 0.1 for p in group["params"]]
    plain = [p for group in groups if group["weight_decay"] == 0.0 for p in group["params"]]
    assert all(names[id(p)].endswith("weight") and p.ndim >= 2 for p in decayed)
    assert any(names[id(p)].endswith("log_scale") for p in plain)
    together = [*decayed, *plain]
    assert len(together) == len(set(map(id, together))) == len(list(network.parameters()))


def test_decay_all_decays_all() -> None:
    network = create_model("simple_cnn", 5)
    groups = parameter_groups(network, nn.Identity(), Optimizer(decay_all=True, weight_decay=0.1))
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_the_head_and_the_losss_own_weights_have_a_rate_of_their_own() -> None:
    network, loss = create_model("resnet18", 5, {"width": 8}), nn.Linear(3, 3)
    optimizer = make_optimizer(network, loss, Optimizer(head_lr_scale=10.0))
    before = {name: p.detach().clone() for name, p in [*network.named_parameters(), *loss.named_parameters("loss")]}

    def step(*, head_only: bool) -> set[str]:
        set_lr(optimizer, 0.01, head_only=head_only)
        (network(torch.randn(4, 3, 32, 32)).sum() + loss(torch.randn(2, 3)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        now = [*network.named_parameters(), *loss.named_parameters("loss")]
        return {name for name, p in now if not torch.equal(p, before[name])}

    own = {"head.weight", "head.bias", "loss.weight", "loss.bias"}
    assert step(head_only=True) == own
    assert step(head_only=False) > own
    names = {id(p): name for name, p in [*network.named_parameters(), *loss.named_parameters("loss")]}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, rate in rates.items() if rate == pytest.approx(0.1)} == own
    assert {rate for name, rate in rates.items() if name not in own} == {0.01}


def test_frozen_norms_keep_their_statistics_and_learn_their_weights() -> None:
    network = create_model("resnet18", 5, {"width": 8}).train()
    freeze_bn(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert network.blocks[0].branch[0][1].weight.grad is not None


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_step_is_the_textbook_step(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    settings = Optimizer(name=name, lr=0.1, weight_decay=0.01, momentum=0.9)  # type: ignore[arg-type]
    optimizer = make_optimizer(layer, nn.Identity(), settings)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer(torch.ones(4, 3)).square().sum().backward()
    gradient, bias_gradient = layer.weight.grad.clone(), layer.bias.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    if name == "sgd":  # Nesterov from a standing start moves by g + momentum g
        decayed = gradient + 0.01 * before
        assert torch.allclose(layer.weight, before - 0.1 * 1.9 * decayed)
        assert torch.allclose(layer.bias, bias - 0.1 * 1.9 * bias_gradient)
    else:  # the first Adam step is the sign, with the decay beside it
        assert torch.allclose(layer.weight, before * (1 - 0.1 * 0.01) - 0.1 * gradient.sign(), atol=1e-5)
        assert torch.allclose(layer.bias, bias - 0.1 * bias_gradient.sign(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("one_cycle", 0, 0.05),
        ("one_cycle", 20, 1.0),
        ("one_cycle", 60, 0.5),
        ("one_cycle", 100, 0.0),
        ("cosine", 20, 1.0),
        ("cosine", 60, 0.5),
        ("cosine", 40, (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 100, 0.0),
        ("constant", 10, 0.525),
        ("constant", 100, 1.0),
    ],
)
def test_the_schedule_passes_through(name: str, step: int, expected: float) -> None:
    schedule = Schedule(name=name, warmup=0.2, start=0.05)  # type: ignore[arg-type]
    assert lr_at(schedule, 2.0, step, 101) == pytest.approx(2.0 * expected, abs=1e-9)


@given(
    name=st.sampled_from(["one_cycle", "cosine", "constant"]),
    warmup=st.floats(0, 1),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    total=st.integers(1, 50),
)
def test_the_rate_never_leaves_its_bounds(name: str, warmup: float, start: float, end: float, total: int) -> None:
    schedule = Schedule(name=name, warmup=warmup, start=start, end=end)  # type: ignore[arg-type]
    rates = [lr_at(schedule, 3.0, step, total) for step in range(total)]
    assert all(3.0 * min(start, end) - 1e-9 <= rate <= 3.0 + 1e-9 for rate in rates)


def test_the_average_is_the_formula_and_counters_are_copied() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = ModelEma(network, decay=0.5)
    expected = network[0].weight.item()
    for step in range(5):
        with torch.no_grad():
            network[0].weight.fill_(float(step))
            network[1].num_batches_tracked.fill_(step)  # type: ignore[operator]
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.network.state_dict()["0.weight"].item() == pytest.approx(expected)
    assert average.network.state_dict()["1.num_batches_tracked"].item() == 4
