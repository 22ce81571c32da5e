"""Multi-similarity loss: hard pairs, each weighted by its similarity relative to the other pairs of its anchor.

X. Wang, X. Han, W. Huang, D. Dong and M. R. Scott: Multi-Similarity Loss with General Pair Weighting for Deep Metric
Learning. CVPR 2019, https://arxiv.org/abs/1904.06627
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiSimilarityLoss(nn.Module):
    r"""The mean over all anchors i, with S the cosine similarities, of

        1/alpha log(1 + sum over hard positives exp(-alpha (S_ik - base)))
      + 1/beta  log(1 + sum over hard negatives exp( beta (S_ik - base)))

    A positive (of the anchor's label, and not the anchor itself) is hard if S_ik - epsilon is below the similarity of
    the anchor's most similar negative; a negative is hard if S_ik + epsilon is above that of the least similar
    positive. An anchor without positives or negatives has no hard pairs; it counts in the mean with 0.

    Args:
        alpha: weight of positives in the exponent.
        beta: weight of negatives in the exponent.
        base: the similarity around which pairs are weighted; lambda in the paper.
        epsilon: margin within which a pair still counts as hard.

    Raises:
        ValueError: alpha or beta is not above zero, or a number is not finite.
    """

    takes_reference = True

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float = 0.1) -> None:
        super().__init__()
        if not (alpha > 0 and beta > 0):
            raise ValueError("alpha and beta must be above zero")
        if not all(map(math.isfinite, (alpha, beta, base, epsilon))):
            raise ValueError("alpha, beta, base and epsilon must be finite")
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
        itself: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, D) of any length and float type, labels (B,) int64 -> scalar float32.

        Pairs are those within the batch or, with `reference` (R, D) and `reference_labels` (R,), of the batch with it;
        `itself` (B,) is then the row of the anchor in the reference, which is not a pair. A batch without pairs gives
        0 with a gradient of zeros; an embedding that is not finite gives NaN.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = F.normalize(embeddings.float())
            if reference is None or reference_labels is None:
                others, other_labels = anchors, labels
                itself = torch.arange(len(labels), device=labels.device)
            else:
                others, other_labels = F.normalize(reference.float()), reference_labels
            similarity = anchors @ others.T  # (B, R)

            same = labels[:, None] == other_labels
            positive, negative = same, ~same
            if itself is not None:
                positive = same & (itself[:, None] != torch.arange(len(others), device=labels.device))

            # without positives or negatives the border is infinite, so that nothing on the other side is hard
            least_positive = similarity.masked_fill(~positive, math.inf).amin(1, keepdim=True)  # (B, 1)
            most_negative = similarity.masked_fill(~negative, -math.inf).amax(1, keepdim=True)
            hard_positive = positive & (similarity - self.epsilon < most_negative)
            hard_negative = negative & (similarity + self.epsilon > least_positive)

            pull = log_one_plus_sum(-self.alpha * (similarity - self.base), hard_positive) / self.alpha  # (B,)
            push = log_one_plus_sum(self.beta * (similarity - self.base), hard_negative) / self.beta
            # NaN is never hard: the second term lets it through
            return (pull + push).mean() + 0.0 * similarity.sum()


def log_one_plus_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum of exp over the chosen), row by row: (B, R) float and bool -> (B,); 0 if none is chosen."""
    return F.pad(exponents.masked_fill(~chosen, -math.inf), (1, 0)).logsumexp(1)  # exp(0) = 1 is the column of the pad
