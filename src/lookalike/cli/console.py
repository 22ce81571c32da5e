r"""Output of the commands: text, JSON, progress bars and results.

Names of files, classes and labels are untrusted text: control characters in them (such as escape sequences), and bytes
of names that are not UTF-8, are printed as `\x1b` and so on.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from lookalike.errors import without_passwords

if TYPE_CHECKING:
    from rich.console import Console

    from lookalike.run import Run
    from lookalike.training.run import Callbacks

# Control characters except line feed and tab, and the surrogates that stand for bytes that are not UTF-8
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Text with control characters escaped, safe for a terminal.

    >>> shown("caf\udce9 \x1b[31mred")
    'caf\\xe9 \\x1b[31mred'
    """
    return _CONTROL.sub(_escaped, text)


def echo(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text to standard output or standard error; characters that the stream cannot encode are escaped."""
    stream = sys.stderr if err else sys.stdout
    stream.write(_encodable(shown(str(text)) + end, stream))
    stream.flush()


def print_json(tree: Any, *, indent: int | None = 2) -> None:
    r"""Print plain values as JSON, in UTF-8 in every locale; bytes that are not UTF-8 are written as `\xeb`."""
    text = json.dumps(tree, indent=indent, ensure_ascii=False)
    text = _CONTROL.sub(lambda found: json.dumps(_escaped(found) if _is_surrogate(found[0]) else found[0])[1:-1], text)
    text += "\n"
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        buffer.write(text.encode())
    sys.stdout.flush()


def can_show(text: str) -> bool:
    """Whether standard output can encode these characters."""
    return _encodable(text, sys.stdout) == text


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# Progress bars on standard error, on a terminal only.

Progress = Callable[[int, int | None], None]  # (done so far, in all; None: not known)
Unit = Literal["items", "bytes"]
SCORES = {"top1": "top-1", "top5": "top-5", "recall_at_1": "Recall@1", "recall_at_8": "Recall@8"}


class ProgressBars:
    """Bars below each other, with count, rate and time left; they disappear when the context is left.

    Args:
        console: where they are drawn; by default standard error. Where it is no terminal, nothing is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich import progress
        from rich.console import Console

        console = console or Console(stderr=True)
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def bar(self, what: str, *, unit: Unit = "items", visible: bool = False) -> Progress:
        """Add a bar with count and rate, drawn from its first report on, or at once when `visible`."""
        report = self.noted_bar(what, visible=visible)
        number = len(self._progress.tasks) - 1

        def counting(done: int, total: int | None) -> None:
            speed = self._progress.tasks[number].speed
            rate = f"  {_amount(round(speed), unit)}/s" if speed else ""
            report(done, total, f"{_amount(done, unit)}/{_amount(total, unit)}{rate}")

        return counting

    def noted_bar(self, what: str, *, visible: bool = False) -> Callable[[int, int | None, str], None]:
        """Add a bar that shows the note of its last report; a report of less than before starts it again."""
        task = self._progress.add_task(what, total=None, visible=visible, note="")
        last = 0

        def report(done: int, total: int | None, note: str) -> None:
            nonlocal last
            if done < last:
                self._progress.reset(task)
            last = done
            self._progress.update(task, completed=done, total=total or None, visible=True, note=note)

        return report


@contextmanager
def progress_bar(what: str, *, unit: Unit = "items") -> Iterator[Progress]:
    """One progress bar; call what is yielded with (done, total)."""
    with ProgressBars() as bars:
        yield bars.bar(what, unit=unit, visible=True)


def _amount(number: int | None, unit: Unit) -> str:
    if number is None:
        return "?"
    if unit == "items":
        return f"{number:,}"
    from rich.filesize import decimal

    return decimal(number)


@contextmanager
def training_progress(console: Console) -> Iterator[Callbacks]:
    """Show a training run on a console; when a signal stops it, print the command that continues it."""
    from lookalike.training.run import Callbacks

    with ProgressBars(console) as bars:
        decoding, training = bars.bar("decoding"), bars.noted_bar("training")
        start, last, where = time.perf_counter(), 0, ""

        def say(text: str, style: str | None = None) -> None:
            console.print(shown(text), style=style, highlight=False, markup=False, soft_wrap=True)

        def on_record(record: dict[str, Any], total: int) -> None:
            nonlocal start, last, where
            step = record["step"]
            if record["kind"] == "stopped":
                where = f" at step {step} of {total}"
                return
            if record["kind"] == "precision":
                times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in record["ms"].items())
                say(f"training in {record['precision']} (a forward and backward pass takes: {times})", "dim")
                return
            if step < last:  # another run begins
                start = time.perf_counter()
            last = step
            if record["kind"] == "train":
                note = f"epoch {record['epoch']:.1f}  loss {record['loss']:.3f}  {record['images_per_second']:.0f}/s"
                training(step, total, note)
            else:
                minutes = (time.perf_counter() - start) / 60
                named = [(name, record[key]) for key, name in SCORES.items() if is_informative(key, record.get(key))]
                scores = "".join(f"  {name} {score:6.2%}" for name, score in named)
                say(f"epoch {record['epoch']:5.1f}  step {step:6d} of {total}{scores}  after {minutes:.1f} min")

        try:
            yield Callbacks(decoding, on_record, lambda text: say(text, "dim"))
        except (KeyboardInterrupt, SystemExit) as left:
            by_signal = isinstance(left, KeyboardInterrupt) or left.code == 128 + signal.SIGTERM
            if by_signal and is_main_process():
                say(f"stopped{where}; continue with: {resume_command(sys.argv[1:])}")
            raise


def is_informative(key: str, score: float | None) -> bool:
    """Whether a score tells anything: with five classes or fewer, top-5 is always 1."""
    return score is not None and (key != "top5" or score < 1)


def resume_command(arguments: Sequence[str]) -> str:
    """The command line that continues one with these arguments: the same, for `train` with --resume."""
    words = [*arguments]
    if words[:1] == ["train"] and "--resume" not in words:
        words.insert(words.index("--") if "--" in words else len(words), "--resume")
    launcher = "torchrun ... -m lookalike.cli.main" if "WORLD_SIZE" in os.environ else "lookalike"
    return without_passwords(f"{launcher} {shlex.join(words)}")


# Results in a few lines.

TOP = 5  # with this many classes or fewer, top-5 says nothing


def is_main_process() -> bool:
    """Whether this process prints: the first one of `torchrun`, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def print_run(run: Run) -> None:
    """Print the results of a finished run and where its files are; only in the main process."""
    if not is_main_process():
        return
    receipt = run.receipt()
    results, data = receipt["results"], receipt["data"]
    flip = ", flip averaged" if results["flip"] else ""
    if "card" in results:
        how = f"{data['name']} by {results['card']['protocol']}{flip}, {results['image_size']} px"
        echo(f"{recalls(results['view'], results)}  ({how})")
    else:
        top5 = f"  top-5 {results['top5']:.2%}" if data["classes"] > TOP else ""
        split = f"{results['folds']}-fold cross-validation" if "folds" in results else results["split"]
        how = f"{data['name']} {split}, single crop{flip}, {results['image_size']} px"
        echo(f"top-1 {results['top1']:.2%}{top5}  ({how})")
    if results.get("at_chance"):
        echo("This is chance level: nothing reliable was learned from these images. More of them, or a start from a")
        echo("model that saw similar ones (lookalike fit DATA --model MODEL), will help more than another setting.")
    if copies := data.get("copies"):
        echo(f"{results['split']}: {copies['sentence']}")
    if reason := results.get("temperature_remark"):
        echo(not_fitted(reason))
    if data["remark"]:
        echo(data["remark"])
    if fitted := receipt.get("fit"):
        chosen = f"{fitted['classifier']} on the features of {receipt['start']['model']}"
        echo(f"{chosen}, fitted to {data['train']:,} images in {receipt['seconds']:.1f} s, seed {receipt['seed']}")
    else:
        echo(f"trained {receipt['seconds'] / 60:.1f} min on {receipt['device']}, seed {receipt['seed']}")
    echo(f"report  {run.report_path}\nmodel   {run.model_dir}")


def not_fitted(reason: str) -> str:
    """Text for a temperature that could not be fitted."""
    return f"temperature 1, not fitted: {reason}"


def recalls(what: str, numbers: dict[str, Any]) -> str:
    """Recall at 1, 2, 4 and 8 of a kind of vectors in one line."""
    return f"{what}: " + "  ".join(f"Recall@{k} {numbers[f'recall_at_{k}']:.2%}" for k in (1, 2, 4, 8))
