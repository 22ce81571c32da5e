"""Arguments and options of the gallery commands, and the values that are typed for them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import completion
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.gallery.store.base import Value

TEXT_KEYS = ("label", "path")  # keys of a filter whose values are always text


class Backend(StrEnum):
    """Where images are read, decoded and embedded."""

    local = "local"
    ray = "ray"


class LostItems(StrEnum):
    """What `gallery reembed` does with items whose files cannot be used."""

    stop = "stop"
    thumbnail = "thumbnail"
    remove = "remove"


Location = Annotated[
    str,
    typer.Argument(
        metavar="GALLERY",
        help="A folder, or postgresql://USER@HOST/DATABASE#NAME.",
        show_default=False,
        autocompletion=completion.galleries,
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...", help="Files, folders, patterns, CSV or Parquet lists, URIs, or names of data sets."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"{completion.MODEL_HELP} If the model is not where the gallery remembers it.",
        autocompletion=completion.models,
    ),
]
Ids = Annotated[list[int] | None, typer.Option("--id", help="Id of an item. Repeatable.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only items with this label, path or metadata; KEY=ONE,OTHER for one of several. Repeatable.",
    ),
]
Label = Annotated[str | None, typer.Option("--label", help="Label of all images.")]
FolderLabels = Annotated[bool, typer.Option(help="Use the names of class folders as labels.")]
BackendOption = Annotated[Backend, typer.Option("--backend", help="Where images are embedded.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="Address of a running Ray cluster, or 'auto'."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_filter(given: Sequence[str] | None) -> dict[str, list[Value]] | None:
    """Parse filters: KEY=VALUE, KEY=ONE,OTHER, or KEY=["with, comma"]. Returns None if there are none.

    A value that looks like a number, true, false or null stands for the text and for that value.

    >>> parse_filter(["label=cat,dog", "year=2012"])
    {'label': ['cat', 'dog'], 'year': ['2012', 2012]}
    """
    found: dict[str, list[Value]] = {}
    for text in given or ():
        key, value = _key_and_value("--filter", text)
        for one in _alternatives(text, value):
            found.setdefault(key, []).extend([one] if key in TEXT_KEYS else _readings(one))
    return found or None


def parse_metadata(given: Sequence[str] | None) -> dict[str, Value] | None:
    """Parse metadata: KEY=VALUE. A value that looks like a number, true, false or null becomes that value.

    >>> parse_metadata(["year=2012", "by=Ann"])
    {'year': 2012, 'by': 'Ann'}
    """
    pairs = [_key_and_value("--metadata", text) for text in given or ()]
    return {key: _readings(value)[-1] for key, value in pairs} or None


def _key_and_value(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"{option} {text}: not KEY=VALUE.", f"Write it like {option} year=2012.")
    return key, value


def _alternatives(text: str, value: str) -> list[str]:
    if not value.startswith("["):
        return value.split(",")
    try:
        several = json.loads(value)
    except ValueError:
        several = None
    if not isinstance(several, list) or not several or not all(isinstance(one, str) for one in several):
        raise InputError(f"--filter {text}: not a JSON list of texts.", "Write it like --filter 'label=[\"a, b\"]'.")
    return several


def _readings(text: str) -> list[Value]:
    """The text itself, and the number, truth value or null that it may stand for."""
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    plain = value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return [text, value] if plain else [text]
