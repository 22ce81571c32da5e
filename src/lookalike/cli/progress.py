"""Progress on a terminal: rate and time left. Where there is no terminal, a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from lookalike.training.fit import Watch


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A `Watch` that shows a run on this console."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lookalike.training.fit import Watch

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        packing = bars.add_task("decoding", total=None, visible=False, note="")
        training = bars.add_task("training", total=None, visible=False, note="")
        start, last = time.perf_counter(), 0

        def on_packing(done: int, total: int) -> None:
            bars.update(packing, completed=done, total=total, visible=done < total, note=f"{done:,} of {total:,}")

        def on_training(record: dict[str, Any], total: int) -> None:
            nonlocal start, last
            step = record["step"]
            if step < last:  # another run begins
                bars.reset(training)
                start = time.perf_counter()
            last = step
            if record["kind"] == "train":
                note = f"epoch {record['epoch']:.1f}  loss {record['loss']:.3f}  {record['images_per_second']:.0f}/s"
                bars.update(training, completed=step, total=total, visible=step < total, note=note)
            else:
                minutes = (time.perf_counter() - start) / 60
                console.print(
                    f"epoch {record['epoch']:5.1f}  step {step:6d} of {total}  top-1 {record['top1']:6.2%}  "
                    f"top-5 {record['top5']:6.2%}  after {minutes:.1f} min",
                    highlight=False,
                )

        yield Watch(packing=on_packing, training=on_training, stage=lambda words: console.print(words, style="dim"))
