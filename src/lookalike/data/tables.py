"""Tables of images: CSV or Parquet with the columns path and label, and optionally split, box and id.

path,label,split,box
cats/1.jpg,cat,train,10 20 110 120
dogs/7.jpg,dog,val,

Paths are relative to the folder of the table. Images without a label belong to the test split. A box is left, top,
right, bottom in pixels and is clipped to the image. Without a val split, one is drawn from train.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.catalog import UNLABELLED, Catalog, Row, Split
from lookalike.data.copies import same_bytes
from lookalike.data.image_folder import SPLIT_NAMES, VAL_FRACTION, one_name_each, with_validation
from lookalike.errors import InputError, nearest

NEEDED = ("path", "label")
OPTIONAL = ("split", "box", "id")

Box = tuple[int, int, int, int]
Record = Mapping[str | None, Any]  # csv files fields without a column under None
Records = list[tuple[int, Record]]  # with the line or row that each stands in


def read_table(path: str | Path, *, val_fraction: float = VAL_FRACTION, split_seed: int = 0) -> Catalog:
    """Read a table of images, or a catalog that `Catalog.to_parquet` wrote.

    Args:
        path: a `.csv` or `.tsv` file (comma, semicolon or tab; UTF-8), or a `.parquet` file.
        val_fraction: share of each class's training images for validation, if no row is in `val`.
        split_seed: seed of that choice.

    Returns:
        The catalog. Classes are the labels, sorted (as numbers if all are integers); ids are the `id` column or the
        paths. A catalog of `Catalog.to_parquet` is returned unchanged.

    Raises:
        InputError: another kind of file, a missing or misspelt column, a bad value, a missing image, a Hugging Face
            copy with the images inside (which must be imported), or fewer than two classes.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        schema = read_schema(path)
        if b"lookalike" in (schema.metadata or {}):
            return _own_catalog(path)
        if any(holds_images(field.type) for field in schema):
            remedy = f"Import it: lookalike data import {path} --name NAME"
            raise InputError(f"{path}: the images are inside this Parquet file.", remedy)
        _check_columns(path, schema.names)
        records = _read_parquet(path, [name for name in schema.names if name in NEEDED + OPTIONAL])
    else:
        records = _read_csv(path)
    return _catalog(path, records, val_fraction, split_seed)


def read_schema(path: Path) -> pa.Schema:
    """Read columns and metadata of a Parquet file.

    Raises:
        InputError: not a whole Parquet file, or it cannot be opened.
    """
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from None


def not_whole(path: Path, error: Exception) -> InputError:
    """Return the error for a Parquet file that PyArrow cannot read."""
    reason = " ".join(str(error).split())
    return InputError(f"{path}: not a whole Parquet file ({reason}).", "Write or download it again.")


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images: plain bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _own_catalog(path: Path) -> Catalog:
    catalog = Catalog.from_parquet(path)
    if not catalog.root.exists():
        raise InputError(
            f"{path}: its images were in {catalog.root}, which is gone.", "Put them back, or write the catalog again."
        )
    return catalog


def _read_parquet(path: Path, columns: list[str]) -> Records:
    try:
        return list(enumerate(pq.read_table(path, columns=columns).to_pylist(), start=1))
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from None


def _read_csv(path: Path) -> Records:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=max(",;\t", key=header.count), strict=True)
            _check_columns(path, rows.fieldnames or [])
            return [(rows.line_num, record) for record in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}).", "Save it as CSV in UTF-8.") from None


def _check_columns(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    if twice := [name for name in NEEDED + OPTIONAL if names.count(name) > 1]:
        raise InputError(f"{path}: two columns are called '{twice[0]}'.", "Keep one of them.")
    for needed in NEEDED:
        if needed not in names:
            as_written = {name.strip().lower(): name for name in names}
            close = difflib.get_close_matches(needed, as_written, n=1, cutoff=0.7)
            hint = f" Is it '{as_written[close[0]]}'?" if close else ""
            there = ", ".join(names) or "none"
            raise InputError(
                f"{path}: no column '{needed}'.{hint}", f"Name the columns path,label; there are: {there}."
            )
    for name in names:
        close = difflib.get_close_matches(name.lower(), OPTIONAL, n=1, cutoff=0.75)
        if close and name != close[0] and close[0] not in names:
            raise InputError(f"{path}: unknown column '{name}'.", f"Did you mean '{close[0]}'? Rename or remove it.")


def _catalog(path: Path, records: Records, val_fraction: float, split_seed: int) -> Catalog:
    labels = [_text(record["label"]) for _, record in records]
    called = one_name_each(label for label in labels if label)
    labels = [called.get(label, label) for label in labels]
    names = _class_names(labels)
    if len(names) < 2:
        raise InputError(f"{path}: {len(names)} different labels.", "A table needs two classes at least.")
    label_of = {name: label for label, name in enumerate(names)} | {"": UNLABELLED}
    rows = [
        _row(_Place(path, number), record, label_of[label])
        for (number, record), label in zip(records, labels, strict=True)
    ]
    without_split = [number for number, record in records if not _text(record.get("split"))]
    if 0 < len(without_split) < len(records):
        _Place(path, without_split[0]).refuse("no split, where other rows have one", "Fill in all of them or none.")
    _check_files(path, rows)
    rows = with_validation(rows, val_fraction, split_seed, partial(same_bytes, path.parent, "folder"))
    return Catalog.from_rows(rows, root=path.parent, class_names=names, name=path.stem)


def _class_names(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, sorted; as numbers if all are integers."""
    names = {label for label in labels if label}
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


class _Place:
    """A row of a table, for error messages."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise InputError(f"{self.path}, row {self.number}: {what}.", remedy)


def _row(place: _Place, record: Record, label: int) -> Row:
    if None in record:
        place.refuse("more fields than columns", "Put text with a comma in it in quotes.")
    file = _text(record["path"])
    if not file:
        place.refuse("no path", "Fill it in, or remove the row.")
    if Path(file).is_absolute():
        place.refuse(f"'{file}' is an absolute path", "Write paths relative to the table's folder.")
    split = _split(place, _text(record.get("split")), label)
    if label == UNLABELLED and split != "test":
        place.refuse(f"'{file}' is in {split} and has no label", "Give it one, or put it into test.")
    return Row(file, label, split, _box(place, record.get("box")), _text(record.get("id")))


def _split(place: _Place, text: str, label: int) -> Split:
    if not text:
        return "test" if label == UNLABELLED else "train"
    if text.lower() not in SPLIT_NAMES:
        place.refuse(f"unknown split '{text}'", f"Use train, val or test.{nearest(text, SPLIT_NAMES)}")
    return SPLIT_NAMES[text.lower()]


def _box(place: _Place, value: Any) -> Box | None:
    """Parse four integers from a list, or from text separated by spaces or commas, with or without brackets."""
    if value is None or value == "":
        return None
    parts = value.strip("[]() ").replace(",", " ").split() if isinstance(value, str) else value
    try:
        left, top, right, bottom = map(_whole_number, parts)
    except (TypeError, ValueError):
        place.refuse(f"the box '{value}' is not four whole numbers", "Write left, top, right, bottom in pixels.")
    if left >= right or top >= bottom:
        place.refuse(f"the box '{value}' is empty", "Write left, top, right, bottom in pixels.")
    return left, top, right, bottom


def _whole_number(value: Any) -> int:
    """Parse 10, 10.0 or "10"; raises ValueError for anything but a 32-bit integer."""
    number = float(value)
    if not number.is_integer() or abs(number) >= 2**31:
        raise ValueError
    return int(number)


def _text(value: Any) -> str:
    """Return a cell as text; a whole float as an integer, since columns of integers with gaps are floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _check_files(path: Path, rows: list[Row]) -> None:
    missing = [row.path for row in rows if not (path.parent / row.path).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise InputError(
            f"{path}: '{missing[0]}'{more} not there.", f"Paths are relative to the table's folder, {path.parent}."
        )
