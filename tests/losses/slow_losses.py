"""The losses as their papers have them: one anchor, one pair at a time, in float64. Slow and obvious. And batches."""

from __future__ import annotations

import torch
from torch import Tensor


def batch(seed: int = 0, classes: int = 5, images: int = 4, dim: int = 8) -> tuple[Tensor, Tensor]:
    """(P * K, dim) embeddings that lie about their class, some of them nearer to another, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images)
    centres = torch.randn(classes, dim, generator=generator)
    embeddings = centres[labels] + 1.2 * torch.randn(len(labels), dim, generator=generator)
    return embeddings.requires_grad_(), labels


def unit(x: Tensor) -> Tensor:
    x = x.double()
    return x / x.norm(dim=1, keepdim=True)


def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    others: list[tuple[Tensor, int]] | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """`others` are the vectors and labels to compare with; of the batch, the last ones of them are the batch itself."""
    x = unit(embeddings)
    if others is None:
        others = [(x[j], int(labels[j])) for j in range(len(x))]
    total = x.sum() * 0
    for i in range(len(x)):
        itself = len(others) - len(x) + i
        similarity = [torch.dot(x[i], vector.double() / vector.double().norm()) for vector, _ in others]
        positives = [j for j, (_, label) in enumerate(others) if label == labels[i] and j != itself]
        negatives = [j for j, (_, label) in enumerate(others) if label != labels[i]]
        if not positives or not negatives:
            continue
        least = min(float(similarity[j]) for j in positives)
        most = max(float(similarity[j]) for j in negatives)
        hard_positives = [j for j in positives if float(similarity[j]) < most + epsilon]
        hard_negatives = [j for j in negatives if float(similarity[j]) > least - epsilon]
        pull = sum(torch.exp(-alpha * (similarity[j] - base)) for j in hard_positives)
        push = sum(torch.exp(beta * (similarity[j] - base)) for j in hard_negatives)
        if hard_positives:
            total = total + torch.log(1 + pull) / alpha
        if hard_negatives:
            total = total + torch.log(1 + push) / beta
    return total / len(x)


def proxy_anchor(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float = 0.1, alpha: float = 32.0
) -> Tensor:
    x, p = unit(embeddings), unit(proxies)
    pull, push, present = x.sum() * 0, x.sum() * 0, 0
    for c in range(len(p)):
        positives = [torch.dot(x[i], p[c]) for i in range(len(x)) if labels[i] == c]
        negatives = [torch.dot(x[i], p[c]) for i in range(len(x)) if labels[i] != c]
        if positives:
            present += 1
            pull = pull + torch.log(1 + sum(torch.exp(-alpha * (s - margin)) for s in positives))
        if negatives:
            push = push + torch.log(1 + sum(torch.exp(alpha * (s + margin)) for s in negatives))
    return pull / present + push / len(p)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return [g.double() for g in torch.autograd.grad(loss, of)]
