"""How many rows have each label, kept up with a gallery that changes."""

from __future__ import annotations

import time
from collections import Counter

from lookalike.search.gallery import Gallery

ANEW = 600.0  # seconds after which all rows are looked at again: a label may have been changed


class LabelCounts:
    """The labels of a gallery. New rows have higher ids than those before, so only these are read; all rows are read
    again when some were removed, or from time to time.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._rows, self._last = 0, 0
        self._read = -ANEW

    def of(self, gallery: Gallery, most: int) -> list[tuple[str, int]]:
        """The most frequent labels and their rows, at most so many; of equal ones in the order of the alphabet.

        Raises:
            InputError: the gallery cannot be read.
        """
        if time.monotonic() - self._read >= ANEW:
            self._forget()
        self._take(gallery)
        if self._rows != len(gallery):
            self._forget()
            self._take(gallery)
        return sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most]

    def _take(self, gallery: Gallery) -> None:
        for row in gallery.store.rows(after=self._last):
            self._rows += 1
            self._last = row.id
            if row.label is not None:
                self._counts[row.label] += 1

    def _forget(self) -> None:
        self._counts.clear()
        self._rows, self._last, self._read = 0, 0, time.monotonic()
