"""Cross-batch memory: what is compared, what is remembered, and that a checkpoint keeps it."""

from __future__ import annotations

import pytest
import slow_losses as slow
import torch
from pytorch_metric_learning.losses import CrossBatchMemory as Theirs
from pytorch_metric_learning.losses import MultiSimilarityLoss as TheirLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from slow_losses import batch
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.losses.cross_batch_memory import CrossBatchMemory
from lookalike.losses.multi_similarity import MultiSimilarityLoss
from lookalike.losses.pml import LibraryLoss
from lookalike.losses.proxy_anchor import ProxyAnchorLoss


def memory(size: int = 50, start: int = 0) -> CrossBatchMemory:
    return CrossBatchMemory(MultiSimilarityLoss(), size, 8, start)


class Twin:
    """The same, with a list: the last `size` images seen, the batch among them."""

    def __init__(self, size: int, start: int) -> None:
        self.size, self.start, self.batches = size, max(start, 1), 0
        self.seen: list[tuple[Tensor, int]] = []

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.seen += [(vector.detach(), int(label)) for vector, label in zip(embeddings, labels, strict=True)]
        self.seen = self.seen[-self.size :]
        self.batches += 1
        if self.batches <= self.start:
            return slow.multi_similarity(embeddings, labels)
        return slow.multi_similarity(embeddings, labels, self.seen)


@pytest.mark.parametrize(("size", "start"), [(100, 0), (30, 0), (12, 0), (30, 3)])
def test_it_is_the_slow_twin(size: int, start: int) -> None:
    """Batches of 12 and 8, singletons in one: rings that are never full, wrap within a batch, hold no more than one."""
    ours, twin = memory(size, start), Twin(size, start)
    for step in range(7):
        embeddings, labels = batch(step, classes=4, images=3 if step % 2 else 2)
        if step == 4:
            labels = torch.arange(len(labels))
        value, expected = ours(embeddings, labels), twin(embeddings, labels)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        (gradient,), (right,) = slow.gradients(value, embeddings), slow.gradients(expected, embeddings)
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("by_library", [False, True], ids=["our loss", "their loss"])
def test_it_is_pytorch_metric_learning_s(by_library: bool) -> None:
    loss: nn.Module = MultiSimilarityLoss()
    if by_library:
        loss = LibraryLoss("MultiSimilarityLoss", {}, "MultiSimilarityMiner", {}, num_classes=5, dim=8)
    ours = CrossBatchMemory(loss, 50, 8)
    theirs = Theirs(TheirLoss(), 8, 50, MultiSimilarityMiner())
    for step in range(6):
        embeddings, labels = batch(step)
        value, expected = ours(embeddings, labels), theirs(embeddings, labels)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        if step:  # theirs cuts the gradient within the first batch too, where there is nothing yet to remember
            (gradient,), (right,) = slow.gradients(value, embeddings), slow.gradients(expected, embeddings)
            torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["TripletMarginLoss", "ContrastiveLoss"])
def test_triplets_and_pairs_of_the_library_leave_the_anchor_out(name: str) -> None:
    loss = LibraryLoss(name, {}, "TripletMarginMiner", {}, num_classes=5, dim=8)
    ours = CrossBatchMemory(loss, 60, 8)
    from pytorch_metric_learning import losses, miners

    theirs = Theirs(getattr(losses, name)(), 8, 60, miners.TripletMarginMiner())
    for step in range(4):
        embeddings, labels = batch(step)
        torch.testing.assert_close(ours(embeddings, labels), theirs(embeddings, labels), rtol=1e-5, atol=1e-6)


def test_the_first_batch_has_the_whole_gradient() -> None:
    embeddings, labels = batch()
    (gradient,) = slow.gradients(memory()(embeddings, labels), embeddings)
    (plain,) = slow.gradients(MultiSimilarityLoss()(embeddings, labels), embeddings)
    assert torch.equal(gradient, plain)


def test_the_past_has_no_gradient() -> None:
    ours = memory()
    first, labels = batch(0)
    second, _ = batch(1)
    ours(first, labels)
    ours(second, labels).backward()
    assert first.grad is None
    assert second.grad.abs().max() > 0
    assert not any(buffer.requires_grad for buffer in ours.buffers())


def test_two_batches_before_one_backward_pass_do_not_disturb_each_other() -> None:
    ours = CrossBatchMemory(LibraryLoss("TripletMarginLoss", {}, num_classes=5, dim=8), 40, 8)
    values = [ours(*batch(step)) for step in range(3)]
    torch.stack(values).sum().backward()


def test_a_run_that_is_resumed_goes_on_with_its_memory() -> None:
    ours, resumed, forgetful = memory(), memory(), memory()
    for step in range(4):
        ours(*batch(step))
    resumed.load_state_dict(ours.state_dict())
    for step in range(4, 7):
        embeddings, labels = batch(step)
        value = ours(embeddings, labels)
        assert torch.equal(resumed(embeddings, labels), value)
        if step == 4:  # two more batches, and the ring is filled anew
            assert not torch.equal(forgetful(embeddings, labels), value)


def test_bf16_embeddings_are_remembered_in_float32() -> None:
    ours = memory()
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(2):
            embeddings, labels = batch(step)
            value = ours(embeddings.bfloat16(), labels)
    assert value.dtype == ours.embeddings.dtype == torch.float32
    torch.testing.assert_close(ours.embeddings[20:40], embeddings.detach().bfloat16().float(), rtol=0, atol=0)


def test_a_batch_that_does_not_fit_is_refused_and_nothing_is_remembered() -> None:
    ours = memory(size=19)
    with pytest.raises(InputError, match=r"loss\.memory=19 cannot hold a batch of 20"):
        ours(*batch())
    assert int(ours.images) == int(ours.batches) == 0


def test_a_loss_on_proxies_has_no_use_for_it() -> None:
    for loss, name in (
        (ProxyAnchorLoss(3, 8), "ProxyAnchorLoss"),
        (LibraryLoss("ArcFaceLoss", {}, num_classes=3, dim=8), "pml/ArcFaceLoss"),
    ):
        with pytest.raises(InputError, match=f"{name} compares no pairs"):
            CrossBatchMemory(loss, 100, 8)


@pytest.mark.parametrize(("size", "start"), [(0, 0), (-5, 0), (10, -1)])
def test_sizes_that_cannot_be(size: int, start: int) -> None:
    with pytest.raises(InputError, match="cannot be"):
        memory(size, start)
