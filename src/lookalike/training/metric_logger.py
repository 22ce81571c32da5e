"""Records of a training run: `metrics.jsonl`, the callback of the caller, and trackers such as TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lookalike.extras import missing
from lookalike.run import Run
from lookalike.training.precision import PrecisionProbe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OnRecord = Callable[[dict[str, Any], int], None]


class Tracker(Protocol):
    """Where metrics go besides the run folder. With several processes, only the main one logs."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics such as {"train/loss": 1.2, "train/lr": 0.1} after `step` optimizer steps; steps never fall."""

    def close(self) -> None:
        """Called once, when training ends for whatever reason."""


class TensorBoardTracker:
    """Writes event files for TensorBoard. In a resumed run, values that it has to log again replace the earlier ones.

    Args:
        folder: where the event files go, such as "runs/pets/events".

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise missing("the package tensorboard is not installed.", "tensorboard") from None
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        if self._writer:
            self._writer.close()


class MetricLogger:
    """Passes each record to the run's `metrics.jsonl`, the trackers and the callback.

    Args:
        run: the run whose metrics these are.
        total: number of steps of the whole run.
        is_main_process: whether this process logs; the others do nothing.
        on_record: called with each record and `total`.
        trackers: get the numbers of each record as "train/loss", "eval/top1" and so on.
    """

    def __init__(
        self,
        run: Run,
        total: int,
        *,
        is_main_process: bool = True,
        on_record: OnRecord | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.run = run
        self.total = total
        self.is_main_process = is_main_process
        self.on_record = on_record
        self.trackers = trackers

    def train(self, step: int, epoch: float, loss: float, lr: float, size: int, speed: float) -> None:
        """Log the mean loss since the last record, learning rate, resolution in pixels and images per second."""
        metrics = {"loss": loss, "lr": lr, "size": size, "images_per_second": round(speed, 1)}
        self._log("train", step, epoch, metrics)

    def evaluate(self, step: int, epoch: float, scores: dict[str, float]) -> None:
        """Log the scores on the validation images."""
        self._log("eval", step, epoch, scores)

    def precision(self, step: int, probe: PrecisionProbe) -> None:
        """Tell the callback, and nobody else, which precision was chosen and what was measured."""
        if self.is_main_process and self.on_record and probe.milliseconds:
            record = {"kind": "precision", "step": step, "precision": probe.precision, "ms": probe.milliseconds}
            self.on_record(record, self.total)

    def stopped(self, step: int) -> None:
        """Tell the callback, and nobody else, that a signal stopped training after `step` steps."""
        if self.is_main_process and self.on_record:
            self.on_record({"kind": "stopped", "step": step}, self.total)

    def _log(self, kind: str, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        if not self.is_main_process:
            return
        values = {"epoch": round(epoch, 4), **metrics}
        record = {"kind": kind, "step": step, **values}
        self.run.log(record)
        for tracker in self.trackers:
            tracker.log({f"{kind}/{key}": value for key, value in values.items()}, step)
        if self.on_record:
            self.on_record(record, self.total)
