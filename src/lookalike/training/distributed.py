"""One run in several processes, started by `torchrun`: who we are, and the few words that we exchange."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike import hardware as devices
from lookalike.errors import InputError, LookalikeError

Result = TypeVar("Result")


@dataclass(frozen=True)
class DistributedContext:
    """The processes of this run.

    Args:
        rank: our number; number 0 prints, logs and saves.
        size: how many there are.
        device: ours.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def any(self, flag: int) -> int:
        """The largest `flag` of all processes."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(flag, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def mean(self, value: float) -> float:
        """The mean of all processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device, dtype=torch.float64 if self.device.type == "cpu" else None)
        dist.all_reduce(tensor)
        return float(tensor) / self.size

    def gather_rows(self, rows: NDArray[np.float32], total: int) -> NDArray[np.float32]:
        """Rows rank, rank + size, rank + 2 size, ... of an array of `total` rows, put together in every process."""
        if self.size == 1:
            return rows
        parts: list[NDArray[np.float32]] = [rows] * self.size
        dist.all_gather_object(parts, rows)
        whole = np.empty((total, *rows.shape[1:]), rows.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def share_statistics(self, network: nn.Module) -> None:
        """Give every process the leading one's buffers: batch-norm statistics are each process's own while training."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def in_turn(self, action: Callable[[], Result]) -> Result:
        """Let the leading process act, then the others, who find done what it writes.

        Where the leading process fails, it alone says so; the others leave without a word, with its exit code.
        """
        if self.size > 1 and not self.leads and (code := self.any(0)):
            raise SystemExit(code)
        try:
            result = action()
        except LookalikeError as error:
            if self.leads:
                self.any(error.exit_code)
            raise
        if self.leads:
            self.any(0)
        return result

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(device: str) -> DistributedContext:
    """Find our place: alone, or one of the processes that `torchrun` started.

    Raises:
        InputError: no such device, or more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = devices.choose_device(device)
    if size == 1:
        return DistributedContext(0, 1, chosen)
    if chosen.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} has no GPU of its own: there are {torch.cuda.device_count()}.",
                "Start torchrun with --nproc-per-node of at most that, or with training.device=cpu.",
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # or its threads may abort a process that leaves before the others
    return DistributedContext(dist.get_rank(), size, chosen)


# The whole batch in every process, with its gradient: losses that compare images need more than one process's share.


def all_gather(x: Tensor) -> Tensor:
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
