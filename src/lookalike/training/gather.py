"""The whole batch in every process, with its gradient: losses that compare images need more than one process's share.

A run in W processes computes the loss L of the whole batch W times, once in each. The gradient that a process gets for
its own rows is the sum of what all processes find for them: W dL/dx. `DistributedDataParallel` then adds up the
parameters' gradients over the processes, which makes those of W L, and divides by W: those of L are left, just what
one process would find for the whole batch. There is no factor that the loss or the learning rate must make good.

Weights of the loss itself (proxies) are not the network's: every process computes their whole gradient from the whole
batch, so that they need no averaging, and averaging would not change them. What is random in the loss must be drawn
alike in all processes. Batch norms still see each process's own share.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all processes, that of rank 0 first: (B / W, ...) in each of W processes -> (B, ...) in all of them.

    Every process must call it, with as many rows of the same type. The backward pass gives each process the gradient
    of its own rows, summed over the processes. Alone, `x` itself is returned. Whole numbers (labels) have no gradient.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return cast(Tensor, _Gather.apply(x))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        own = x.contiguous()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
