"""What the gallery's commands share: arguments, filters and thresholds as they are typed, and a bar for long work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import completion
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.search.queries import Threshold
    from lookalike.search.store.base import Value

Target = Annotated[
    str,
    typer.Argument(
        metavar="GALLERY",
        help="A folder, or postgresql://USER@HOST/DATABASE#NAME.",
        show_default=False,
        autocompletion=completion.galleries,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model's folder or name on the Hub, when not where the gallery remembers it.",
        autocompletion=completion.models,
    ),
]
Filter = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only rows with this; commas for one of several; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OWN = ("label", "path")  # a row's own columns: text


def parse_where(given: Sequence[str] | None) -> dict[str, list[Value]] | None:
    """Filters as they are typed: KEY=VALUE, KEY=ONE,OTHER, or KEY=["with, comma"]; None where there are none.

    What looks like a number, true, false or null stands for the text as well as for that value.

    >>> parse_where(["label=cat,dog", "year=2012"])
    {'label': ['cat', 'dog'], 'year': ['2012', 2012]}
    """
    found: dict[str, list[Value]] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InputError(f"--where {text}: not KEY=VALUE.", "Write it like --where label=cat.")
        for one in _values(text, value):
            found.setdefault(key, []).extend([one] if key in OWN else _meanings(one))
    return found or None


def _values(text: str, value: str) -> list[str]:
    if not value.startswith("["):
        return value.split(",")
    try:
        several = json.loads(value)
    except ValueError:
        several = None
    if not isinstance(several, list) or not several or not all(isinstance(one, str) for one in several):
        raise InputError(f"--where {text}: not a list of texts in JSON.", "Write it like --where 'label=[\"a, b\"]'.")
    return several


def _meanings(text: str) -> list[Value]:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    plain = value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return [text, value] if plain else [text]


def parse_threshold(text: str | None) -> Threshold:
    """A threshold as it is typed: a cosine, "calibrated", "none"; not given, the calibrated one where there is one."""
    if text is None:
        return "default"
    if text == "calibrated":
        return "calibrated"
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--threshold {text}: no cosine.", "Give a number, 'calibrated' or 'none'.") from None


def counted(number: int, word: str) -> str:
    """A number with its word.

    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None, rate="")

        def report(done: int, total: int) -> None:
            speed = bars.tasks[0].speed
            bars.update(task, completed=done, total=total or None, rate=f"{speed:,.0f}/s" if speed else "")

        yield report
