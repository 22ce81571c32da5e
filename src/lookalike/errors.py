"""The errors a person can cause: what was wrong, where, and what to do.

Everything that a user's input, disk or device can bring about is raised as a `LookalikeError`; the command line prints
its message and remedy on one line each and exits with its code. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LookalikeError(Exception):
    """A failure with a remedy.

    Args:
        message: what was wrong, naming the file, key or value.
        remedy: what the person can do about it, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(LookalikeError):
    """Bad input: a file, folder, key, value or device that cannot be used as given (exit code 2)."""

    exit_code = 2


class TrainingError(LookalikeError):
    """A run that started well and could not go on, such as a loss that is no longer finite (exit code 1)."""


class DownloadError(LookalikeError):
    """A transfer that could not be completed from any mirror (exit code 1); what arrived is kept for the next try."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known word closest to `word`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
