"""The errors a person can cause: what was wrong, where, and what to do.

Everything that a user's input, disk or device can bring about is raised as a `LookalikeError`; the command line prints
its message and remedy on one line each and exits with its code. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SECRETS = ("password", "sslpassword", "passwd", "pwd", "oauth_client_secret", "secret_key", "access_token", "token")


COVER = "***"


# What follows the user's name in a URL up to the last "@", also one with "/" or "?" in it, as nobody should write it;
# a path collapses "//" to "/". A number that is not followed by "@" is a port; other text there is a password without
# its host. Repetitions are bounded, so that hostile text takes no longer than its length.
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
    """A failure with a remedy.

    Passwords in either are covered; see `without_passwords`.

    Args:
        message: what was wrong, naming the file, key or value.
        remedy: what the person can do about it, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = without_passwords(message)
        self.remedy = without_passwords(remedy)
        super().__init__(self.message)

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


def without_passwords(text: str) -> str:
    """The text with "***" in place of the passwords of URLs and of PostgreSQL's `key=value` words.

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
    """The text with the values of a URL's secret options covered, up to "&", a space, or the "#NAME" of a gallery."""
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
    """Whether an option of a URL, percent-encoded or not, has a password for its value."""
    from urllib.parse import unquote

    return unquote(option).lower() in SECRETS


# Numbers with their nouns.


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> [counted(n, noun) for n, noun in ((1, "class"), (2, "class"), (3000, "query"), (0, "image"))]
    ['1 class', '2 classes', '3,000 queries', '0 images']
    """
    if count == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {plural}"
