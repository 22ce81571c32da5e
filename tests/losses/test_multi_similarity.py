"""Multi-similarity loss: the formula, pair by pair, and what is left out."""

from __future__ import annotations

import math

import pytest
import slow_losses as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import MultiSimilarityLoss as Theirs
from pytorch_metric_learning.miners import MultiSimilarityMiner
from slow_losses import batch

from lookalike.losses.multi_similarity import MultiSimilarityLoss

OPTIONS = [
    {},
    {"alpha": 1.0, "beta": 10.0, "base": 0.0, "epsilon": 0.3},
    {"alpha": 18.0, "beta": 75.0, "base": 0.77, "epsilon": 0.02},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "soft", "sharp"])
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    dim=st.integers(1, 5),
    spread=st.sampled_from([0.05, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_value_and_gradient_are_the_formula_s(
    options: dict[str, float], labels: list[int], dim: int, spread: float, seed: int
) -> None:
    """Any labels: singletons, one class only, and batches of one image among them."""
    of = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, dim, generator=generator)
    embeddings = (centres[of] + spread * torch.randn(len(of), dim, generator=generator)).requires_grad_()
    ours = MultiSimilarityLoss(**options)(embeddings, of)
    theirs = slow.multi_similarity(embeddings, of, **options)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    (gradient,), (expected,) = slow.gradients(ours, embeddings), slow.gradients(theirs, embeddings)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "soft", "sharp"])
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_are_pytorch_metric_learning_s(options: dict[str, float], seed: int) -> None:
    embeddings, labels = batch(seed, 6, 5, 16)
    ours = MultiSimilarityLoss(**options)(embeddings, labels)
    epsilon = options.get("epsilon", 0.1)
    reference = Theirs(**{key: value for key, value in options.items() if key != "epsilon"})
    theirs = reference(embeddings, labels, MultiSimilarityMiner(epsilon)(embeddings, labels))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    (gradient,), (expected,) = slow.gradients(ours, embeddings), slow.gradients(theirs, embeddings)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_a_worked_example() -> None:
    """Two images of one class at a right angle, one of another between them: every pair is hard."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    loss = MultiSimilarityLoss()(embeddings, torch.tensor([0, 0, 1]))
    diagonal = math.sqrt(0.5)
    pull = math.log(1 + math.exp(-2 * (0 - 0.5))) / 2
    push = math.log(1 + math.exp(50 * (diagonal - 0.5))) / 50
    assert float(loss) == pytest.approx(2 * (pull + push) / 3, abs=1e-6)


def test_only_hard_pairs_have_a_gradient() -> None:
    """An easy negative, far below the positive, is left out; so is the positive of an anchor without near negatives."""
    angles = torch.tensor([0.0, 0.1, 3.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    loss = MultiSimilarityLoss()(embeddings, torch.tensor([0, 0, 1]))
    loss.backward()
    assert float(loss) == 0.0
    assert embeddings.grad is not None
    assert embeddings.grad.count_nonzero() == 0
    assert float(MultiSimilarityLoss(epsilon=3.0)(embeddings, torch.tensor([0, 0, 1]))) > 0.1


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [1, 1, 1, 1], [2]], ids=["no positives", "no negatives", "alone"])
def test_a_batch_without_pairs_is_zero_and_still_trains(labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = MultiSimilarityLoss()(embeddings, torch.tensor(labels))
    loss.backward()
    assert float(loss) == 0.0
    assert embeddings.grad is not None
    assert embeddings.grad.count_nonzero() == 0


def test_anchors_without_positives_or_negatives_only_count() -> None:
    embeddings, labels = batch(classes=3)
    alone = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    with_one = torch.cat([embeddings, alone]), torch.cat([labels, torch.tensor([9])])
    expected = slow.multi_similarity(*with_one)
    torch.testing.assert_close(MultiSimilarityLoss()(*with_one).double(), expected, rtol=1e-5, atol=1e-6)


def test_only_directions_count() -> None:
    embeddings, labels = batch()
    loss, scale = MultiSimilarityLoss(), torch.linspace(0.1, 30, len(labels))[:, None]
    torch.testing.assert_close(loss(embeddings * scale, labels), loss(embeddings, labels))


def test_bf16_embeddings_are_computed_in_float32() -> None:
    embeddings, labels = batch()
    rough = embeddings.detach().bfloat16().requires_grad_()
    exact = MultiSimilarityLoss()(rough.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MultiSimilarityLoss()(rough, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    assert rough.grad is not None
    assert rough.grad.dtype == torch.bfloat16
    assert torch.isfinite(rough.grad).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 2, 3]], ids=["pairs", "no pairs"])
def test_what_is_not_finite_shows(bad: float, labels: list[int]) -> None:
    embeddings = torch.eye(4)
    embeddings[2, 1] = bad
    assert torch.isnan(MultiSimilarityLoss()(embeddings, torch.tensor(labels)))


def test_a_reference_set_is_compared_with() -> None:
    embeddings, labels = batch()
    loss = MultiSimilarityLoss()
    rows = torch.arange(len(labels))
    torch.testing.assert_close(loss(embeddings, labels, embeddings, labels, rows), loss(embeddings, labels))
    others, other_labels = batch(seed=1, classes=4)
    pairs = [(vector, int(label)) for vector, label in zip(others, other_labels, strict=True)]
    expected = sum(
        slow.multi_similarity(embeddings[i : i + 1], labels[i : i + 1], [*pairs, (embeddings[i], int(labels[i]))])
        for i in range(len(labels))
    ) / len(labels)
    torch.testing.assert_close(loss(embeddings, labels, others, other_labels).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"beta": -1.0}, {"alpha": math.nan}, {"base": math.inf}])
def test_numbers_that_make_no_loss_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MultiSimilarityLoss(**options)
