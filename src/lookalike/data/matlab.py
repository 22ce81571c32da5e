"""MATLAB files that people's data sets come with: read without trust, refused with a reason."""

from __future__ import annotations

import io
import zipfile
from typing import Any, NoReturn

import numpy as np

from lookalike.data.folder import Tree, open_zip
from lookalike.errors import InputError

MAX_BYTES = 16 * 2**20  # of a file; lists of images have a few hundred thousand


def read_mat(tree: Tree, name: str) -> dict[str, Any]:
    """The variables of a `.mat` file (MATLAB 4 to 7.2), arrays squeezed and text as str.

    Args:
        tree: the folder or zip that holds it.
        name: its name in there.

    Raises:
        InputError: it cannot be read, is far too large for a list, or is no such file.
    """
    from scipy.io import loadmat

    try:
        return dict(loadmat(io.BytesIO(_read(tree, name)), squeeze_me=True))
    except InputError:
        raise
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{tree.root}: '{name}' is no MATLAB file, or damaged ({reason}).", "Restore it.") from None


def records_of(tree: Tree, name: str, variables: dict[str, Any], variable: str, *fields: str) -> list[tuple[Any, ...]]:
    """The rows of a struct array, with the values of the named fields.

    Raises:
        InputError: there is no such variable, or it lacks a field.
    """
    array = np.atleast_1d(variables.get(variable, np.empty(0)))
    if missing := [field for field in fields if field not in (array.dtype.names or ())]:
        _refuse(tree, name, f"has no '{variable}' with the field '{missing[0]}'")
    return [tuple(row[field] for field in fields) for row in array.ravel()]


def texts_of(tree: Tree, name: str, variables: dict[str, Any], variable: str) -> list[str]:
    """A cell array of text.

    Raises:
        InputError: there is no such variable, or something else stands in it.
    """
    texts = np.atleast_1d(variables.get(variable, np.empty(0))).ravel().tolist()
    if not texts or not all(isinstance(text, str) for text in texts):
        _refuse(tree, name, f"has no list of names called '{variable}'")
    return [str(text) for text in texts]


def whole_number(value: Any) -> int:
    """The whole number in a cell.

    Raises:
        ValueError: it is none.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "buif":
        raise ValueError(f"{value!r} is no number")
    number = float(array.ravel()[0])
    if not number.is_integer() or abs(number) >= 2**31:
        raise ValueError(f"{number} is no whole number")
    return int(number)


def _read(tree: Tree, name: str) -> bytes:
    try:
        if tree.container == "folder":
            with (tree.root / name).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with open_zip(tree.root) as archive, archive.open(name) as member:
                data = member.read(MAX_BYTES + 1)
    except (OSError, KeyError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{tree.root}: cannot read '{name}' ({error}).", "Restore this file.") from None
    if len(data) > MAX_BYTES:
        _refuse(tree, name, f"is larger than {MAX_BYTES // 2**20} MiB")
    return data


def _refuse(tree: Tree, name: str, what: str) -> NoReturn:
    raise InputError(f"{tree.root}: '{name}' {what}.", "Use the file that came with the data set.")
