"""Filters on labels, paths and metadata as SQL, over the tables of `schema.py`.

Metadata are kept a second time in `tags`, one row for each key, with the value as JSON: so every filter is a look-up in
an index, text is not a number and `true` is not 1.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence

from lookalike.errors import InputError
from lookalike.search.store.base import Row, Value, Where

OWN = ("label", "path")  # the row's own columns
MOST_KEYS = 100  # of a filter;
MOST_VALUES = 10_000  # of all its keys together,
MOST_BYTES = 1 << 20  # and so many of these and of the keys as JSON in UTF-8
BITS = 13_000  # of a whole number: some 3,900 digits
FEWER = "Ask with fewer of them at a time."

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
    if isinstance(value, int) and value.bit_length() > BITS:
        raise InputError("a number of thousands of digits cannot be kept as metadata or filtered by.", "Round it.")
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


def values_of(where: Where | None) -> dict[str, list[Value]]:
    """The values of each key of a filter, one or several; each value once.

    Raises:
        InputError: more keys, values or bytes than a filter may have, or a value that cannot be filtered by.
    """
    found: dict[str, list[Value]] = {}
    count = size = 0
    for key, wanted in (where or {}).items():
        given = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        count += len(given)
        if len(found) >= MOST_KEYS or count > MOST_VALUES:
            limit = f"{MOST_KEYS} keys" if count <= MOST_VALUES else f"{MOST_VALUES:,} values"
            raise InputError(f"filter by '{key[:80]}': more than {limit} in all.", FEWER)
        size += len(key.encode("utf-8", "surrogatepass"))
        size += sum(len(tag(value).encode("utf-8", "surrogatepass")) for value in given)
        if size > MOST_BYTES:
            raise InputError(
                f"filter by '{key[:80]}': its keys and values have more than {MOST_BYTES >> 20} MiB.", FEWER
            )
        found[key] = list({(type(value) is bool, value): value for value in given}.values())
    return found


def clause(where: Where | None) -> Clause:
    """The condition on `images` that all of `where` hold; "TRUE" where there is none.

    Raises:
        InputError: as `values_of`.
    """
    conditions: list[str] = []
    parameters: list[str | None] = []
    for key, values in values_of(where).items():
        condition, own = _own(key, values) if key in OWN else _of_metadata(key, values)
        conditions.append(condition)
        parameters += own
    return " AND ".join(conditions) or "TRUE", parameters


def passes(row: Row, where: Where | None) -> bool:
    """Whether a row does pass, by what it holds itself."""
    for key, wanted in (where or {}).items():
        values = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        if key in OWN:
            there: object = row.label if key == "label" else row.path
            good = there in [value for value in values if value is None or isinstance(value, str)]
        else:
            there = row.metadata.get(key)
            kept = [value if value is None else tag(value) for value in values]
            good = (None if there is None else tag(there)) in kept
        if not good:
            return False
    return True


def _own(column: str, values: Sequence[Value]) -> Clause:
    """A label or path is text: a number or truth value equals none."""
    texts: list[str | None] = [*texts_of(column, values)]
    condition = f"{column} IN ({_marks(texts)})"
    return (f"({condition} OR {column} IS NULL)" if None in values else condition), texts


def texts_of(column: str, values: Sequence[Value]) -> list[str]:
    """The texts that a filter on a row's own column asks for; of a label, also with composed letters (NFC), as labels
    are kept.
    """
    texts = [value for value in values if isinstance(value, str)]
    composed = [unicodedata.normalize("NFC", text) for text in texts] if column == "label" else []
    return list(dict.fromkeys([*texts, *composed]))


def _of_metadata(key: str, values: Sequence[Value]) -> Clause:
    kept: list[str | None] = [tag(value) for value in values if value is not None]
    condition = f"id IN (SELECT id FROM tags WHERE key = ? AND value IN ({_marks(kept)}))"
    if None not in values:
        return condition, [key, *kept]
    return f"({condition} OR id NOT IN (SELECT id FROM tags WHERE key = ?))", [key, *kept, key]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
