"""Filters on labels, paths and metadata as SQL, over the tables of `schema.py`.

Metadata are kept a second time in `tags`, one row for each key, with the value as JSON: so every filter is a look-up in
an index, text is not a number and `true` is not 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from lookalike.errors import InputError
from lookalike.search.store.base import Value, Where

OWN = ("label", "path")  # the row's own columns

Clause = tuple[str, list[str | None]]  # SQL over `images`, with its parameters


def tag(value: Value) -> str:
    """A value as it is kept and compared: JSON, with whole floats as integers (1.0 equals 1).

    Raises:
        InputError: not a value that metadata may have.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{value} cannot be kept as metadata or filtered by.", "Leave it out, or use null.")
        if value.is_integer():
            value = int(value)
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(
            f"{value!r} cannot be kept as metadata or filtered by.", "Use text, numbers, true, false or null."
        )
    return json.dumps(value, ensure_ascii=False)


def tags(metadata: Mapping[str, Value]) -> list[tuple[str, str]]:
    """The rows of `tags` for a picture, without its id. Null is kept as no tag: a key that is null and one that is
    not there are the same to a filter.
    """
    return [(key, tag(value)) for key, value in metadata.items() if value is not None]


def clause(where: Where | None) -> Clause:
    """The condition on `images` that all of `where` hold; "TRUE" where there is none.

    Raises:
        InputError: a value that cannot be filtered by.
    """
    conditions: list[str] = []
    parameters: list[str | None] = []
    for key, wanted in (where or {}).items():
        values = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        condition, own = _own(key, values) if key in OWN else _of_metadata(key, values)
        conditions.append(condition)
        parameters += own
    return " AND ".join(conditions) or "TRUE", parameters


def _own(column: str, values: Sequence[Value]) -> Clause:
    """A label or path is text: a number or truth value equals none."""
    texts: list[str | None] = [value for value in values if isinstance(value, str)]
    condition = f"{column} IN ({_marks(texts)})"
    return (f"({condition} OR {column} IS NULL)" if None in values else condition), texts


def _of_metadata(key: str, values: Sequence[Value]) -> Clause:
    kept: list[str | None] = [tag(value) for value in values if value is not None]
    condition = f"id IN (SELECT id FROM tags WHERE key = ? AND value IN ({_marks(kept)}))"
    if None not in values:
        return condition, [key, *kept]
    return f"({condition} OR id NOT IN (SELECT id FROM tags WHERE key = ?))", [key, *kept, key]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
