"""Numbers with their nouns."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> [counted(n, noun) for n, noun in ((1, "class"), (2, "class"), (3000, "query"), (0, "image"))]
    ['1 class', '2 classes', '3,000 queries', '0 images']
    """
    if count == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {plural}"
