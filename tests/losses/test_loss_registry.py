"""A loss by name: options are checked against its constructor, and what does not go together is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slow_losses import batch

from lookalike.errors import InputError
from lookalike.losses.cross_batch_memory import CrossBatchMemory
from lookalike.losses.multi_similarity import MultiSimilarityLoss
from lookalike.losses.pml import LibraryLoss
from lookalike.losses.proxy_anchor import ProxyAnchorLoss
from lookalike.losses.registry import LOSSES, create_loss, options_of


@pytest.mark.parametrize("name", [*LOSSES, "pml/TripletMarginLoss", "pml/ArcFaceLoss"])
def test_each_trains_a_batch(name: str) -> None:
    embeddings, labels = batch()
    loss = create_loss(name, num_classes=5, dim=8)(embeddings, labels)
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert embeddings.grad.abs().max() > 0


def test_options_reach_the_loss() -> None:
    loss = create_loss("multi_similarity", {"alpha": 3.0, "epsilon": 0.2}, num_classes=5, dim=8)
    assert isinstance(loss, MultiSimilarityLoss)
    assert (loss.alpha, loss.beta, loss.base, loss.epsilon) == (3.0, 50.0, 0.5, 0.2)
    loss = create_loss("proxy_anchor", {"margin": 0.2}, num_classes=5, dim=8)
    assert isinstance(loss, ProxyAnchorLoss)
    assert (loss.margin, tuple(loss.proxies.shape)) == (0.2, (5, 8))


def test_the_library_s_losses_and_miners_are_called_by_its_prefix() -> None:
    loss = create_loss(
        "pml/MarginLoss",
        {"margin": 0.3},
        num_classes=5,
        dim=8,
        miner="pml/HDCMiner",
        miner_options={"filter_percentage": 0.3},
    )
    assert isinstance(loss, LibraryLoss)
    assert (loss.loss.margin, loss.miner.filter_percentage) == (0.3, 0.3)


def test_a_memory_is_put_around_it() -> None:
    loss = create_loss("multi_similarity", {"beta": 40.0}, num_classes=5, dim=8, memory=64, memory_start=10)
    assert isinstance(loss, CrossBatchMemory)
    assert (loss.size, loss.start, loss.loss.beta, tuple(loss.embeddings.shape)) == (64, 10, 40.0, (64, 8))


def test_the_options_are_known() -> None:
    assert options_of("multi_similarity") == {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1}
    assert options_of("proxy_anchor") == {"margin": 0.1, "alpha": 32.0}


@pytest.mark.parametrize(
    ("name", "options", "more", "says"),
    [
        ("multisimilarity", {}, {}, "no loss named 'multisimilarity'. Did you mean 'multi_similarity'"),
        ("TripletMarginLoss", {}, {}, "no loss named 'TripletMarginLoss'."),
        ("multi_similarity", {"alhpa": 1}, {}, "'multi_similarity' has no option 'alhpa'. Did you mean 'alpha'"),
        ("proxy_anchor", {"dim": 4}, {}, "'proxy_anchor' has no option 'dim'"),
        ("multi_similarity", {"beta": -1}, {}, "'multi_similarity' refuses beta=-1"),
        ("multi_similarity", {"beta": "x"}, {}, "'multi_similarity' refuses beta='x'"),
        ("multi_similarity", {}, {"miner": "pml/HDCMiner"}, "loss.miner: 'multi_similarity' takes none"),
        ("multi_similarity", {}, {"miner_options": {"epsilon": 1}}, "loss.miner: 'multi_similarity' takes none"),
        ("pml/MarginLoss", {}, {"miner": "HDCMiner"}, "no miner named 'HDCMiner'"),
        ("pml/MarginLos", {}, {}, "has no loss 'MarginLos'. Did you mean 'MarginLoss'"),
        ("proxy_anchor", {}, {"memory": 100}, "loss.memory: ProxyAnchorLoss compares no pairs"),
        ("multi_similarity", {}, {"memory": -1}, "loss.memory=-1"),
        ("multi_similarity", {}, {"memory_start": 5}, "there is no memory"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        create_loss(name, options, num_classes=5, dim=8, **more)
    assert says in caught.value.message
    assert caught.value.remedy
