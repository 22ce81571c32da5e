"""Proxy-anchor loss: the formula, and pytorch-metric-learning's own."""

from __future__ import annotations

import math

import pytest
import slow_losses as slow
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss as Theirs
from slow_losses import batch

from lookalike.losses.proxy_anchor import ProxyAnchorLoss


def ours(classes: int = 7, **options: float) -> ProxyAnchorLoss:
    torch.manual_seed(0)
    return ProxyAnchorLoss(classes, 8, **options)


OPTIONS = pytest.mark.parametrize("options", [{}, {"margin": 0.3, "alpha": 8.0}], ids=["default", "soft"])


@OPTIONS
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_are_the_formula_s(options: dict[str, float], seed: int) -> None:
    """Two of the seven classes are not in the batch."""
    embeddings, labels = batch(seed)
    loss = ours(**options)
    value, expected = loss(embeddings, labels), slow.proxy_anchor(embeddings, labels, loss.proxies, **options)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    found = slow.gradients(value, embeddings, loss.proxies)
    right = slow.gradients(expected, embeddings, loss.proxies)
    for gradient, should in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, should, rtol=1e-4, atol=1e-5)


@OPTIONS
def test_value_and_gradients_are_pytorch_metric_learning_s(options: dict[str, float]) -> None:
    embeddings, labels = batch()
    loss, reference = ours(**options), Theirs(7, 8, **options)
    reference.proxies.data.copy_(loss.proxies.data)
    value, expected = loss(embeddings, labels), reference(embeddings, labels)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    found = slow.gradients(value, embeddings, loss.proxies)
    right = slow.gradients(expected, embeddings, reference.proxies)
    for gradient, should in zip(found, right, strict=True):
        assert should.abs().max() > 1e-3
        torch.testing.assert_close(gradient, should, rtol=1e-4, atol=1e-6)


def test_one_class_only_is_a_loss_too() -> None:
    embeddings, _ = batch()
    labels = torch.zeros(len(embeddings), dtype=torch.int64)
    loss = ours(classes=1)
    value = loss(embeddings, labels)
    value.backward()
    torch.testing.assert_close(
        value.double(), slow.proxy_anchor(embeddings, labels, loss.proxies), rtol=1e-5, atol=1e-6
    )
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(loss.proxies.grad).all()


def test_bf16_embeddings_are_computed_in_float32() -> None:
    embeddings, labels = batch()
    rough = embeddings.detach().bfloat16().requires_grad_()
    loss = ours()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(rough, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(rough.float(), labels))
    assert loss.proxies.grad.dtype == torch.float32
    assert rough.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(bad: float) -> None:
    embeddings, labels = batch()
    embeddings.data[3, 2] = bad
    assert torch.isnan(ours()(embeddings, labels))


def test_a_label_beyond_the_proxies_is_an_error() -> None:
    embeddings, labels = batch()
    with pytest.raises(RuntimeError, match="Class values"):
        ours(classes=3)(embeddings, labels)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": math.inf}, {"margin": math.nan}])
def test_numbers_that_make_no_loss_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ours(**options)


def test_learning_the_proxies_lowers_the_loss() -> None:
    embeddings, labels = batch()
    loss = ours()
    optimizer = torch.optim.SGD(loss.parameters(), 0.3)
    before = float(loss(embeddings, labels))
    for _ in range(10):
        optimizer.zero_grad()
        loss(embeddings.detach(), labels).backward()
        optimizer.step()
    assert float(loss(embeddings, labels)) < 0.8 * before
