"""Proxy-anchor loss: the anchors are learned proxies, one for each class, compared with the whole batch.

S. Kim, D. Kim, M. Cho and S. Kwak: Proxy Anchor Loss for Deep Metric Learning. CVPR 2020,
https://arxiv.org/abs/2003.13911
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProxyAnchorLoss(nn.Module):
    r"""With s the cosine similarity of an embedding and a proxy,

        mean over the classes in the batch of log(1 + sum over their embeddings  exp(-alpha (s - margin)))
      + mean over all classes              of log(1 + sum over other embeddings  exp( alpha (s + margin)))

    The proxies are weights of the loss. They are learned with the network, usually at a higher learning rate.

    Args:
        num_classes: C, proxies to learn.
        dim: D, of the embeddings.
        margin: delta in the paper.
        alpha: scale of the similarities.

    Raises:
        ValueError: alpha is not above zero, or a number is not finite.
    """

    takes_reference = False

    def __init__(self, num_classes: int, dim: int, margin: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__()
        if not (alpha > 0 and math.isfinite(alpha) and math.isfinite(margin)):
            raise ValueError("alpha must be above zero, and both it and margin finite")
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.margin, self.alpha = margin, alpha

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings (B, D) of any length and float type, labels (B,) int64 in 0..C-1 -> scalar float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = F.normalize(embeddings.float()) @ F.normalize(self.proxies.float()).T  # (B, C)
            own = F.one_hot(labels, len(self.proxies)).bool()
            pull = log_one_plus_sum(-self.alpha * (similarity - self.margin), own)  # (C,)
            push = log_one_plus_sum(self.alpha * (similarity + self.margin), ~own)
            return pull.sum() / own.any(0).sum() + push.mean()


def log_one_plus_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum of exp over the chosen), column by column: (B, C) float and bool -> (C,); 0 where none is chosen."""
    return F.pad(exponents.masked_fill(~chosen, -math.inf), (0, 0, 1, 0)).logsumexp(0)  # the pad's row is exp(0) = 1
