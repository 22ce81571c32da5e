"""Every network, held to what `build` promises."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.registry import NETWORKS, create_model, options_of

CLASSES = 7
SMALL: dict[str, dict[str, Any]] = {
    name: {"width": 8, "features": 32, "tokens": 8, "dim": 4}
    if name.startswith("cubs")
    else {"width": 8}
    if name.startswith("resnet")
    else {"widths": [16, 32, 64], "pairs": [1, 2, 1]}
    if name == "weave"
    else {}
    for name in NETWORKS
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def small(name: str, seed: int = 0) -> nn.Module:
    """A small one, away from its zero initialisations: every parameter has a say."""
    torch.manual_seed(seed)
    network = create_model(name, CLASSES, SMALL[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def pictures(size: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@EVERY
@pytest.mark.parametrize("size", [32, 64])
def test_shapes(name: str, size: int) -> None:
    network = small(name).eval()
    x = pictures(size)
    with torch.no_grad():
        logits, features = network(x), network.forward_features(x)
    assert logits.shape == (2, CLASSES)
    assert features.ndim == 4
    assert features.shape[0] == 2
    assert network.head.in_features == network.num_features
    assert network.head.out_features == CLASSES
    assert torch.isfinite(logits).all()


@EVERY
def test_the_head_stands_on_the_features(name: str) -> None:
    network = small(name).eval()
    x = pictures(32)
    with torch.no_grad():
        features = network.forward_features(x)
        if name == "simple_cnn":  # two dense layers between
            pooled = network.dense(network.pool(features).flatten(1))
        else:
            assert features.shape[1] == network.num_features
            pooled = features.mean((2, 3))
        torch.testing.assert_close(network.head(pooled), network(x))


@EVERY
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = small(name).train()
    torch.nn.functional.cross_entropy(network(pictures(32, batch=4)), torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@EVERY
def test_evaluation_is_deterministic_and_one_image_does_not_see_the_others(name: str) -> None:
    network = small(name).eval()
    x = pictures(32, batch=3)
    with torch.no_grad():
        together = network(x)
        assert torch.equal(together, network(x))
        torch.testing.assert_close(together[1:2], network(x[1:2]), rtol=1e-4, atol=1e-4)


@EVERY
def test_bf16_autocast_trains_and_agrees_roughly(name: str) -> None:
    network = small(name)
    x = pictures(32)
    with torch.no_grad():
        exact = network.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
        loss = network.train()(x).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0) > 0.99


@EVERY
def test_channels_last_gives_the_same(name: str) -> None:
    network = small(name).eval()
    x = pictures(32)
    with torch.no_grad():
        plain = network(x)
        turned = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, turned, rtol=1e-4, atol=1e-4)


@EVERY
def test_the_state_is_all_there_is(name: str) -> None:
    one, other = small(name, seed=1), small(name, seed=2)
    one.train()(pictures(32))  # moves the batch-norm statistics
    x = pictures(32, seed=3)
    assert not torch.equal(one.eval()(x), other.eval()(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@EVERY
def test_the_seed_decides_the_start(name: str) -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in create_model(name, CLASSES, SMALL[name]).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


GOLDEN: dict[str, list[float]] = {
    "simple_cnn": [275.4808, 878.73456, 1204.02258],
    "weave": [0.00471, -0.04553, 0.11712],
    "resnet18": [-0.04426, -0.0967, 0.06639],
    "resnet34": [0.13445, 0.22068, -0.09365],
    "resnet50": [-0.14163, 0.04823, -0.20239],
    "cubs_resnet_1": [-3.2215, 2.52978, -16.49806],
    "cubs_resnet_2": [-0.00676, -0.00966, 0.03043],
    "cubs_resnet_3": [0.09028, 0.01674, 0.02234],
    "cubs_resnet_4": [-0.04183, 0.03051, -0.02167],
    "cubs_resnet_5": [-0.04228, 0.02948, -0.01968],
}


@EVERY
def test_golden_outputs(name: str) -> None:
    """Logits of a seeded network for a seeded picture: a change of architecture or initialisation shows here."""
    with torch.no_grad():
        logits = small(name).eval()(pictures(32))
    assert logits[0, :3].tolist() == pytest.approx(GOLDEN[name], rel=1e-4, abs=1e-4)


@EVERY
def test_every_option_is_taken(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name, CLASSES, options_of(name))
    assert network.head.out_features == CLASSES


@EVERY
def test_an_unknown_option_names_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' has no option 'droput'. Did you mean 'dropout'") as caught:
        create_model(name, CLASSES, {"droput": 0.1})
    assert "dropout" in caught.value.remedy
    assert "model.options={}" in caught.value.remedy  # where it is the recipe's


@pytest.mark.parametrize(("wrong", "right"), [("resnet81", "resnet18"), ("cubs_resnet1", "cubs_resnet_1")])
def test_an_unknown_network_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(InputError, match=f"no network named '{wrong}'. Did you mean '{right}'"):
        create_model(wrong, CLASSES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"stem": "tiny"}),
        ("resnet18", {"width": -1}),
        ("resnet18", {"width": "wide"}),
        ("resnet18", {"dropout": 2.0}),
        ("cubs_resnet_1", {"placement": "first"}),
        ("cubs_resnet_2", {"tokens": 7}),
        ("cubs_resnet_2", {"tokens": 0}),
        ("cubs_resnet_3", {"similarity": "dot"}),
        ("weave", {"widths": [16, 32]}),
        ("weave", {"stride": 3}),
        ("weave", {"widths": []}),
        ("resnet18", {"width": 0}),
        ("resnet50", {"width": 0}),
        ("resnet18", {"width": 1, "stem": "patch"}),
        ("resnet18", {"width": 8.0}),
        ("resnet18", {"width": True}),
        ("resnet18", {"dropout": math.nan}),
        ("cubs_resnet_1", {"dim": 0}),
        ("cubs_resnet_3", {"dim": -4}),
        ("cubs_resnet_2", {"features": 0}),
        ("cubs_resnet_4", {"tokens": 8.0}),
        ("cubs_resnet_5", {"width": 10**9}),
        ("weave", {"widths": [16, 0, 64]}),
        ("weave", {"widths": [-16, 32, 64]}),
        ("weave", {"widths": [2, 32, 64]}),
        ("weave", {"pairs": [1, -1, 1]}),
        ("weave", {"stride": 2.0}),
        ("simple_cnn", {"dropout": -1}),
    ],
)
def test_a_value_that_does_not_fit_is_refused(name: str, options: dict[str, Any]) -> None:
    key, value = next(iter(options.items()))
    with warnings.catch_warnings(record=True) as warned, pytest.raises(InputError) as caught:
        create_model(name, CLASSES, options)
    assert not warned
    assert f"'{name}' refuses" in caught.value.message
    assert f"{key}={value!r}" in caught.value.message
    assert "\n" not in caught.value.message
