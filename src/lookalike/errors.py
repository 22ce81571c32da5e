"""Errors that a user can cause: what was wrong, where, and what to do.

Problems with a user's input, disk or device are raised as `LookalikeError`. The command line prints message and remedy
and exits with the error's code. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Options of database URLs that hold secrets.
SECRETS = ("password", "sslpassword", "passwd", "pwd", "oauth_client_secret", "secret_key", "access_token", "token")

COVER = "***"

# The password of a URL: what follows the user name up to the last "@", even if it contains "/" or "?"; a path collapses
# "//" to "/". A number that is not followed by "@" is a port; other text there is a password without its host.
# Repetitions are bounded, so that the time for hostile text is linear.
_LOGIN = re.compile(
    r"([a-z][a-z0-9+.-]{0,30}:/{1,3}[^\s:@/?#\[]{0,500}):"
    r"(?:\S{0,1000}@|(?!\d{0,9}(?:[/?#,:'\")]|\s|$))(?:[^\n@]{0,200}@|[^\s/?#]{1,500}))",
    re.IGNORECASE,
)
_OPTION = re.compile(r"[?&]([\w%]{1,60})=")
_WORD = re.compile(
    rf"(?<![\w?&%])((?:{'|'.join(SECRETS[:5])})\s{{0,9}}=\s{{0,9}})(?:'(?:[^'\\]|\\.){{0,1000}}'?|(?:[^\s'\\]|\\.){{1,1000}})",
    re.IGNORECASE,
)


class LookalikeError(Exception):
    """An error with a remedy. Passwords in both are replaced; see `without_passwords`.

    Args:
        message: what was wrong, with the file, key or value.
        remedy: what the user can do, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = without_passwords(message)
        self.remedy = without_passwords(remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(LookalikeError):
    """A file, folder, key, value or device that cannot be used (exit code 2)."""

    exit_code = 2


class TrainingError(LookalikeError):
    """A training run that cannot continue, for example because the loss is no longer finite (exit code 1)."""


class DownloadError(LookalikeError):
    """A download that failed on all mirrors (exit code 1). The part that arrived is kept for the next try."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known word closest to `word`; an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def without_passwords(text: str) -> str:
    """Replace the passwords of URLs and of PostgreSQL's `key=value` strings by "***".

    >>> without_passwords("postgresql://ann:s3cret@db/photos?sslpassword=x&port=1: no answer")
    'postgresql://ann:***@db/photos?sslpassword=***&port=1: no answer'
    >>> without_passwords("host=db password='my secret' user=ann")
    'host=db password=*** user=ann'
    """
    if ":/" in text:
        text = _LOGIN.sub(lambda found: f"{found[1]}:{COVER}{'@' if found[0].endswith('@') else ''}", text)
    if "=" in text:
        text = _without_options(text)
        text = _WORD.sub(rf"\1{COVER}", text)
    return text


def _without_options(text: str) -> str:
    """Replace the values of a URL's secret options, up to "&", a space, or the "#NAME" of a gallery."""
    parts, start = [], 0
    for found in _OPTION.finditer(text):
        if found.end() < start or not is_secret(found[1]):
            continue
        end = next((place for place in range(found.end(), len(text)) if text[place] in " \t\n&"), len(text))
        value = text[found.end() : end]
        if "#" in value and text[end : end + 1] != "&":
            end = found.end() + value.rindex("#")
        else:
            end = found.end() + len(value.rstrip("'\":)"))
        parts += [text[start : found.end()], COVER]
        start = end
    return "".join([*parts, text[start:]])


def is_secret(option: str) -> bool:
    """Whether an option of a URL, percent-encoded or not, holds a secret."""
    from urllib.parse import unquote

    return unquote(option).lower() in SECRETS


def counted(count: int, noun: str) -> str:
    """Format a number with its noun.

    >>> [counted(n, noun) for n, noun in ((1, "class"), (2, "class"), (3000, "query"), (0, "image"))]
    ['1 class', '2 classes', '3,000 queries', '0 images']
    """
    if count == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {plural}"
