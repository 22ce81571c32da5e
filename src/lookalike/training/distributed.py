"""One run in several processes, started by `torchrun`: who we are, and the few words that we exchange."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from lookalike.errors import InputError, LookalikeError
from lookalike.models import device as devices

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
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


def join(device: str) -> World:
    """Find our place: alone, or one of the processes that `torchrun` started.

    Raises:
        InputError: no such device, or more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = devices.choose(device)
    if size == 1:
        return World(0, 1, chosen)
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
    return World(dist.get_rank(), size, chosen)
