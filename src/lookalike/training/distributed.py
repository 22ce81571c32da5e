"""One run in several processes, started by `torchrun`."""

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

from lookalike.errors import InputError, LookalikeError
from lookalike.hardware import choose_device

Result = TypeVar("Result")


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run. Every method must be called by all of them.

    Args:
        rank: number of this process, from 0. Process 0 is the main one: it prints, logs and saves.
        world_size: number of processes.
        device: the device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def max(self, value: int) -> int:
        """The largest value of all processes."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def mean(self, value: float) -> float:
        """The mean of the values of all processes."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.device, dtype=torch.float64 if self.device.type == "cpu" else None)
        dist.all_reduce(tensor)
        return float(tensor) / self.world_size

    def gather_rows(self, rows: NDArray[np.float32], total: int) -> NDArray[np.float32]:
        """Put an array of `total` rows together; each process gives rows rank, rank + world_size, and so on."""
        if self.world_size == 1:
            return rows
        parts: list[NDArray[np.float32]] = [rows] * self.world_size
        dist.all_gather_object(parts, rows)
        whole = np.empty((total, *rows.shape[1:]), rows.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.world_size] = part
        return whole

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy the main process's buffers to the others: while training, each has its own batch-norm statistics."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def main_process_first(self, action: Callable[[], Result]) -> Result:
        """Run an action in the main process, then in the others, which find the files that it wrote.

        When the action fails in the main process, the others exit silently with the same exit code.
        """
        if self.world_size > 1 and not self.is_main_process and (code := self.max(0)):
            raise SystemExit(code)
        try:
            result = action()
        except LookalikeError as error:
            if self.is_main_process:
                self.max(error.exit_code)
            raise
        if self.is_main_process:
            self.max(0)
        return result

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def init_distributed(device: str) -> DistributedContext:
    """Join the processes that `torchrun` started, or return the context of a single process.

    Args:
        device: as in `lookalike.hardware.choose_device`; of several CUDA processes, each gets a GPU of its own.

    Raises:
        InputError: there is no such device, or there are more processes than GPUs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if world_size == 1:
        return DistributedContext(0, 1, chosen)
    if chosen.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} has no GPU: this machine has {torch.cuda.device_count()}.",
                "Start torchrun with at most that many for --nproc-per-node, or set training.device=cpu.",
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # its threads may abort a process that exits before the others
    return DistributedContext(dist.get_rank(), world_size, chosen)


def all_gather(x: Tensor) -> Tensor:
    """Concatenate a tensor of all processes, in the order of their ranks: (B, ...) each -> (W * B, ...) in all W.

    Gradients flow back: each process gets the gradient of its own rows, summed over the processes. Integers have none.
    Every process must call it, with the same shape and type. A single process gets `x` itself.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return cast(Tensor, _AllGather.apply(x))  # type: ignore[no-untyped-call]


class _AllGather(torch.autograd.Function):
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
