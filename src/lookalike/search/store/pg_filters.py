"""Filters on labels, paths and metadata as SQL, over the tables of `pg_schema.py`, and metadata as JSON.

JSONB compares as a filter should: text is not a number, `true` is not 1, and 1.0 equals 1. `@>` uses the index on
`metadata`. A key that is null and one that is not there are the same to a filter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lookalike.search.store.base import Value, Where
from lookalike.search.store.filters import OWN, tag, texts_of, values_of
from lookalike.search.store.pg_driver import Jsonb, sql

INDEXED_VALUES = 20  # of a key, up to which the index is asked

Clause = tuple[sql.Composable, list[Any]]  # a condition on `images`, with its parameters


def jsonb(metadata: Mapping[str, Value]) -> Jsonb:
    """Metadata as they are kept.

    Raises:
        InputError: a value that cannot be kept.
    """
    items = ", ".join(f"{json.dumps(str(key), ensure_ascii=False)}: {_text(value)}" for key, value in metadata.items())
    return Jsonb(f"{{{items}}}", dumps=str)


def clause(where: Where | None) -> Clause:
    """The condition that all of `where` hold; TRUE where there is none.

    Raises:
        InputError: as `values_of`.
    """
    conditions: list[sql.Composable] = []
    parameters: list[Any] = []
    for key, values in values_of(where).items():
        condition, own = _own(key, values) if key in OWN else _of_metadata(key, values)
        conditions.append(condition)
        parameters += own
    return (sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("TRUE")), parameters


def _own(column: str, values: Sequence[Value]) -> Clause:
    """A label or path is text: a number or truth value equals none."""
    texts = texts_of(column, values)
    either = "({column} = ANY(%s::text[]) OR {column} IS NULL)" if None in values else "{column} = ANY(%s::text[])"
    return sql.SQL(either).format(column=sql.Identifier(column)), [texts]


def _of_metadata(key: str, values: Sequence[Value]) -> Clause:
    """The index knows `@>`. For each row that it finds, and for every row where it is not used, the server unpacks the
    metadata as often as there are values, and gives the memory back after the row: some GB for thousands of values and
    metadata of some 100 kB. Of many values the key's is taken out once and looked up among them.
    """
    given = [value for value in values if value is not None]
    parameters: list[Any]
    if len(given) <= INDEXED_VALUES:
        condition, parameters = "metadata @> ANY(%s::jsonb[])", [[jsonb({key: value}) for value in given]]
    else:
        condition, parameters = (
            "metadata -> %s::text = ANY(%s::jsonb[])",
            [key, [Jsonb(value, _text) for value in given]],
        )
    if None not in values:
        return sql.SQL(condition), parameters
    return sql.SQL(f"({condition} OR metadata ->> %s IS NULL)"), [*parameters, key]


def _text(value: Value) -> str:
    """JSON of a value. A whole float keeps a decimal point, so that it comes back as the float that it was."""
    text = tag(value)
    if isinstance(value, float):
        return format(value, ".1f") if value.is_integer() else repr(value)
    return text
