"""What is said while training: metrics.jsonl, TensorBoard, and whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lookalike.run import Run


class MetricLogger:
    """Writes each record once, in the leading process.

    Args:
        run: where to.
        leads: whether this process leads; otherwise nothing is written.
        watch: called with each record, and at the end with `stopped`'s, and the number of steps in all.
        total: steps in all.
        since: the step the run goes on from; TensorBoard drops what it had seen beyond it.
    """

    def __init__(
        self, run: Run, leads: bool, watch: Callable[[dict[str, Any], int], None] | None, total: int, since: int
    ) -> None:
        self.run = run
        self.watch = watch
        self.total = total
        self.writer = SummaryWriter(str(run.events_dir), purge_step=since + 1 if since else None) if leads else None

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writer:
            self.writer.close()

    def train(self, step: int, epoch: float, loss: float, lr: float, size: int, speed: float) -> None:
        """Mean loss since the last record, learning rate, resolution in pixels, images per second."""
        record = {"loss": loss, "lr": lr, "size": size, "images_per_second": round(speed, 1)}
        self._say({"kind": "train", "step": step, "epoch": round(epoch, 4), **record})

    def evaluate(self, step: int, epoch: float, scores: dict[str, float]) -> None:
        """Top-1, top-5 and negative log-likelihood on the validation images."""
        self._say({"kind": "eval", "step": step, "epoch": round(epoch, 4), **scores})

    def stopped(self, step: int) -> None:
        """A signal ends this sitting after so many steps: whoever watches is told, and it is written nowhere."""
        if self.writer and self.watch:
            self.watch({"kind": "stopped", "step": step}, self.total)

    def _say(self, record: dict[str, Any]) -> None:
        if self.writer is None:
            return
        self.run.log(record)
        for key in record.keys() - {"kind", "step"}:
            self.writer.add_scalar(f"{record['kind']}/{key}", record[key], record["step"])
        if self.watch:
            self.watch(record, self.total)
