"""Four faults of the project that this one began as, each beside the right way. `docs/four-faults.md` tells of them.

They share a manner: none stops with an error, each leaves a number that looks like one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from slow_losses import batch
from torch import Tensor, nn

from lookalike.data.catalog import Catalog, Row
from lookalike.evaluation.protocols import named
from lookalike.evaluation.retrieval import recall_at_k
from lookalike.losses.multi_similarity import MultiSimilarityLoss

Loss = Callable[[Tensor, Tensor], Tensor]


# 1. a loss in NumPy has no gradient


def loss_in_numpy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Multi-similarity without mining, computed outside of PyTorch and wrapped again, so that `backward` goes."""
    x = embeddings.detach().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity, same = x @ x.T, labels.numpy()[:, None] == labels.numpy()
    positive = same & ~np.eye(len(x), dtype=bool)
    pull = np.log1p((np.exp(-2 * (similarity - 0.5)) * positive).sum(1)) / 2
    push = np.log1p((np.exp(50 * (similarity - 0.5)) * ~same).sum(1)) / 50
    return torch.tensor((pull + push).mean(), requires_grad=True)


def one_step(loss: Loss) -> tuple[nn.Linear, float, float]:
    """A network after a step of SGD, and the loss before and after it."""
    torch.manual_seed(0)
    network = nn.Linear(8, 4)
    images, labels = batch()
    images = images.detach()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    before = loss(network(images), labels)
    before.backward()
    optimizer.step()
    return network, float(before.detach()), float(loss(network(images), labels).detach())


def test_a_loss_in_numpy_trains_nothing_and_does_not_say_so() -> None:
    network, before, after = one_step(loss_in_numpy)
    assert network.weight.grad is None
    assert after == before
    network, before, after = one_step(MultiSimilarityLoss())
    assert network.weight.grad is not None
    assert network.weight.grad.abs().max() > 0
    assert after < before


def test_its_value_is_right_and_so_hides_the_fault() -> None:
    embeddings, labels = batch()
    everything_is_hard = MultiSimilarityLoss(epsilon=4.0)
    torch.testing.assert_close(loss_in_numpy(embeddings, labels).float(), everything_is_hard(embeddings, labels))


# 2. positives are of the same class, not those that already look alike


def loss_by_similarity(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Pairs above a cosine of 0.5 are positives, the others negatives; the labels are not looked at."""
    del labels
    x = F.normalize(embeddings)
    similarity = x @ x.T
    positive = (similarity > 0.5) & ~torch.eye(len(x), dtype=torch.bool)
    negative = similarity <= 0.5
    pull = torch.log1p((torch.exp(-2 * (similarity - 0.5)) * positive).sum(1)) / 2
    push = torch.log1p((torch.exp(50 * (similarity - 0.5)) * negative).sum(1)) / 50
    return (pull + push).mean()


def confused() -> tuple[Tensor, Tensor]:
    """Four places with an image of each of two classes: every nearest neighbour is of the wrong class."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(4, 6, generator=generator).repeat_interleave(2, 0)
    embeddings = places + 0.05 * torch.randn(8, 6, generator=generator)
    return embeddings.requires_grad_(), torch.tensor([0, 1] * 4)


def after_training(loss: Loss) -> tuple[float, float]:
    """Recall@1 and the mean cosine of the wrong neighbours, after the embeddings themselves were trained."""
    embeddings, labels = confused()
    optimizer = torch.optim.SGD([embeddings], 0.5)
    for _ in range(150):
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
    x = F.normalize(embeddings.detach())
    return recall_at_k(x.numpy(), labels.numpy(), (1,))[1], float((x[::2] * x[1::2]).sum(1).mean())


def test_positives_by_similarity_keep_the_confusion_that_they_start_with() -> None:
    embeddings, labels = confused()
    assert recall_at_k(embeddings.detach().numpy(), labels.numpy(), (1,))[1] == 0.0
    recall, cosine_of_wrong = after_training(loss_by_similarity)
    assert recall == 0.0
    assert cosine_of_wrong > 0.99
    recall, cosine_of_wrong = after_training(MultiSimilarityLoss())
    assert recall == 1.0
    assert cosine_of_wrong < 0.5


# 3. the nearest are those of the highest similarity


def recall_of_the_farthest(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Recall@1 where similarities are sorted as distances would be: the smallest first."""
    x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first = np.argsort(x @ x.T, axis=1)[:, 0]
    return float((labels[first] == labels).mean())


def test_ranked_in_the_wrong_direction_better_embeddings_score_worse() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(10).repeat(20)
    centres = generator.normal(size=(10, 16))
    wrong, right = [], []
    for noise in (8.0, 2.0, 0.5):  # ever better embeddings
        embeddings = centres[labels] + noise * generator.normal(size=(200, 16))
        wrong.append(recall_of_the_farthest(embeddings, labels))
        right.append(recall_at_k(embeddings, labels, (1,))[1])
    assert right[0] < right[1] < right[2] == 1.0
    assert wrong[0] > wrong[1] >= wrong[2] == 0.0


# 4. 98 classes are the labels 0 to 97


def test_up_to_98_counted_from_0_are_99_classes() -> None:
    labels = np.arange(196)
    training, test = np.flatnonzero(labels <= 98), np.flatnonzero(labels >= 98)
    assert len(training) == 99
    assert set(training) & set(test) == {98}, "a class that is tested was trained on"

    rows = [Row(f"{label}/{i}.jpg", label, "train") for label in labels.tolist() for i in range(2)]
    cars = Catalog.from_rows(rows, root=Path("cars"), class_names=[str(label) for label in labels], name="cars")
    divided = named("cars196-zero-shot").divide(cars)
    assert divided.training.class_names == tuple(map(str, range(98)))
    assert divided.test.class_names == tuple(map(str, range(98, 196)))
