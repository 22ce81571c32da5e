"""Cross-batch memory: each batch is also compared with the embeddings of past batches, which gives many more pairs.

X. Wang, H. Zhang, W. Huang and M. R. Scott: Cross-Batch Memory for Embedding Learning. CVPR 2020,
https://arxiv.org/abs/1912.06798
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lookalike.errors import InputError


class CrossBatchMemory(nn.Module):
    """A loss over pairs of the batch (the anchors) with the last `size` embeddings, which include the batch itself.

    No image forms a pair with itself. Remembered embeddings have no gradient; only anchors do. For the first batch and
    the first `start` batches, when the embeddings change fast, it is the plain loss of the batch; all batches are
    remembered. The memory is in buffers, so checkpoints contain it.

    Args:
        loss: one that accepts a reference set (`takes_reference`).
        size: number of embeddings to remember; at least a batch.
        dim: D, of the embeddings.
        start: number of batches before the memory is used.

    Raises:
        InputError: a loss that does not compare images, or numbers that are too small.
    """

    embeddings: Tensor
    labels: Tensor
    batches: Tensor
    images: Tensor

    def __init__(self, loss: nn.Module, size: int, dim: int, start: int = 0) -> None:
        super().__init__()
        if not getattr(loss, "takes_reference", False):
            raise InputError(
                f"loss.memory: {getattr(loss, 'name', type(loss).__name__)} compares no pairs of images that a memory "
                "could add to.",
                "Use loss.memory=0, or a loss on pairs such as multi_similarity.",
            )
        if size < 1 or start < 0:
            raise InputError(
                f"loss.memory={size}, starting after {start} batches, cannot be.",
                "Use a memory of at least a batch, and a start of 0 or more.",
            )
        self.loss, self.size, self.start = loss, size, start
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # number seen so far
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))  # seen so far; modulo size, the next row

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings (B, D) of any length and float type, labels (B,) int64 -> scalar float32; the batch is remembered.

        Raises:
            InputError: the batch is larger than the memory.
        """
        if len(labels) > self.size:
            raise InputError(
                f"loss.memory={self.size} cannot hold a batch of {len(labels)}.",
                "Use a memory of several batches, or 0 for none.",
            )
        batches, images = int(self.batches), int(self.images)
        rows = (torch.arange(len(labels), device=self.labels.device) + images) % self.size
        self.embeddings[rows] = embeddings.detach().float()
        self.labels[rows] = labels
        self.batches += 1
        self.images += len(labels)
        if batches < max(self.start, 1):
            return cast(Tensor, self.loss(embeddings, labels))
        known = min(images + len(labels), self.size)
        reference = self.embeddings[:known].clone()  # the next batch may come before the backward pass
        return cast(Tensor, self.loss(embeddings, labels, reference, self.labels[:known].clone(), rows))
