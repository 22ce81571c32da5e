"""Progress on a terminal: rate and time left. Where there is no terminal, a plain line now and then."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lookalike.cli.console import shown
from lookalike.errors import without_passwords

if TYPE_CHECKING:
    from lookalike.training.fit import Watch

SCORES = {"top1": "top-1", "top5": "top-5", "recall_at_1": "Recall@1", "recall_at_8": "Recall@8"}


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A `Watch` that shows a run on this console and, when a signal ends it, says how to go on."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lookalike.training.fit import Watch

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        packing = bars.add_task("decoding", total=None, visible=False, note="")
        training = bars.add_task("training", total=None, visible=False, note="")
        start, last, where = time.perf_counter(), 0, ""

        def say(words: str, style: str | None = None) -> None:
            console.print(shown(words), style=style, highlight=False, markup=False, soft_wrap=True)

        def on_packing(done: int, total: int) -> None:
            bars.update(packing, completed=done, total=total, visible=done < total, note=f"{done:,} of {total:,}")

        def on_training(record: dict[str, Any], total: int) -> None:
            nonlocal start, last, where
            step = record["step"]
            if record["kind"] == "stopped":
                where = f" at step {step} of {total}"
                return
            if step < last:  # another run begins
                bars.reset(training)
                start = time.perf_counter()
            last = step
            if record["kind"] == "train":
                note = f"epoch {record['epoch']:.1f}  loss {record['loss']:.3f}  {record['images_per_second']:.0f}/s"
                bars.update(training, completed=step, total=total, visible=step < total, note=note)
            else:
                minutes = (time.perf_counter() - start) / 60
                shown = [
                    (words, record[key])
                    for key, words in SCORES.items()
                    if key in record and says_something(key, record[key])
                ]
                scores = "".join(f"  {words} {score:6.2%}" for words, score in shown)
                say(f"epoch {record['epoch']:5.1f}  step {step:6d} of {total}{scores}  after {minutes:.1f} min")

        try:
            yield Watch(packing=on_packing, training=on_training, stage=lambda words: say(words, "dim"))
        except (KeyboardInterrupt, SystemExit) as left:
            by_signal = isinstance(left, KeyboardInterrupt) or left.code == 128 + signal.SIGTERM
            if by_signal and os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
                say(f"stopped{where}; go on with: {again(sys.argv[1:])}")
            raise


def says_something(key: str, score: float) -> bool:
    """Whether a score is worth showing: of five classes or fewer, the first five answers always hold the right one."""
    return key != "top5" or score < 1


def again(arguments: Sequence[str]) -> str:
    """The command line that goes on where one with these arguments was stopped: the same; `train` wants --resume."""
    words = [*arguments]
    if words[:1] == ["train"] and "--resume" not in words:
        words.insert(words.index("--") if "--" in words else len(words), "--resume")
    launcher = "torchrun ... -m lookalike.cli.main" if "WORLD_SIZE" in os.environ else "lookalike"
    return without_passwords(f"{launcher} {shlex.join(words)}")
