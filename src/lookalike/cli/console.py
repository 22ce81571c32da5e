r"""What the command line prints: the one way to a terminal.

Names of files, classes and labels are other people's text. What in them would steer a terminal (escape sequences and
other control characters) is shown as `\x1b` and so on, as are the bytes of a name that is not UTF-8.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TextIO

# Control characters but for line feed and tab, and the surrogates that stand for bytes that are not UTF-8
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Text as a terminal may have it.

    >>> shown("caf\udce9 \x1b[31mred")
    'caf\\xe9 \\x1b[31mred'
    """
    return _UNSHOWN.sub(_escaped, text)


def echo(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text on standard output, or on standard error; characters that it cannot show are escaped."""
    stream = sys.stderr if err else sys.stdout
    stream.write(_encodable(shown(str(text)) + end, stream))
    stream.flush()


def print_json(tree: Any, *, indent: int | None = 2) -> None:
    r"""Print a tree of plain values as JSON, in UTF-8 whatever the locale is; a name that is not UTF-8 has `\xeb`."""
    text = json.dumps(tree, indent=indent, ensure_ascii=False)
    text = _UNSHOWN.sub(lambda found: json.dumps(_escaped(found) if _is_surrogate(found[0]) else found[0])[1:-1], text)
    text += "\n"
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        buffer.write(text.encode())
    sys.stdout.flush()


def can_show(text: str) -> bool:
    """Whether standard output can show these characters."""
    return _encodable(text, sys.stdout) == text


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
