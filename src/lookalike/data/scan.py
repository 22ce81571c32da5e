"""Find the images below a folder, for training, prediction and galleries.

Hidden files and folders (`.x`, also `._x.jpg` from macOS) and `__MACOSX` are ignored. Each folder is visited once, even
if several symbolic links lead to it. Pipes, sockets and devices are not opened. Other files are counted by extension.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import InputError
from lookalike.image import EXTENSIONS

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})  # files of the system, which are not counted
NO_EXTENSION = "(none)"
NO_FILE = "(not a regular file)"
MAX_KINDS = 8  # named in a message
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF and PPM"
_MEDIA = (  # images and films that are not read; they come first in messages
    ".3fr .3gp .ai .arw .avi .avif .avifs .cr2 .cr3 .crw .dib .dng .eps .erf .exr .fff .hdr .heic .heics .heif .heifs "
    ".hif .ico .iiq .insp .j2k .jp2 .jpf .jpm .jpx .jxl .jxr .kdc .m2ts .m4v .mef .mkv .mos .mov .mp4 .mpeg .mpg .mpo "
    ".mrw .mts .nef .nrw .orf .pam .pbm .pcx .pdf .pef .pfm .pnm .psb .psd .qoi .raf .raw .rw2 .sr2 .srf .srw .svg "
    ".svgz .tga .webm .wmv .x3f .xcf"
)
MEDIA = frozenset(_MEDIA.split())


def is_image(name: str) -> bool:
    """Whether a file has the extension of an image."""
    return "." in name and f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a path, with "/" between its parts, has a hidden part."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def kind_of(name: str) -> str:
    """Return the kind of a file: its extension in lower case, such as ".heic"."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return f".{printable(extension).lower()}" if dot and stem and extension else NO_EXTENSION


def modified_ns(about: os.stat_result) -> int:
    """Return the modification time in nanoseconds since 1970, clipped to int64 (years 1677 to 2262)."""
    return max(-(2**63), min(about.st_mtime_ns, 2**63 - 1))


def read_regular(path: str | Path, most: int = -1) -> bytes:
    """Read up to `most` bytes of a regular file. A pipe or device raises OSError instead of blocking."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(opened, "rb") as file:  # noqa: PTH123  (of a descriptor)
        return file.read(most)


def count_kind(passed_over: Counter[str], name: str) -> None:
    """Count a file by kind, unless it is an image or a file of the system."""
    if not is_image(name) and name.rpartition("/")[2].lower() not in SYSTEM_FILES:
        passed_over[kind_of(name)] += 1


def printable(path: str) -> str:
    r"""Return a path with bytes that are not UTF-8 written as \xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_names(root: str, names: Iterator[str]) -> None:
    r"""Refuse names that are not UTF-8, which neither a catalog nor JSON can hold.

    Raises:
        InputError: names the first one, with its bytes as `\xff`, and says how many there are.
    """
    bad = [name for name in names if not name.isascii() and printable(name) != name]
    if bad:
        more = f", nor are {len(bad) - 1:,} others" if len(bad) > 1 else ""
        raise InputError(f"{printable(root)}: the name '{printable(min(bad))}' is not UTF-8{more}.", "Rename it.")


def in_words(passed_over: Mapping[str, int]) -> str:
    """Describe the files that were passed over; "" if there are none.

    >>> in_words({".txt": 1, ".heic": 1200, "(none)": 2})
    '1,200 .heic, 2 without an extension and 1 .txt files were left alone'
    """
    kinds = sorted(passed_over.items(), key=lambda one: (one[0] not in MEDIA, -one[1], one[0]))
    said = [f"{count:,} {_kind_in_words(kind)}" for kind, count in kinds[:MAX_KINDS]]
    if rest := sum(count for _, count in kinds[MAX_KINDS:]):
        said.append(f"{rest:,} other")
    if not said:
        return ""
    listed = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    return f"{listed} {'file was' if sum(passed_over.values()) == 1 else 'files were'} left alone"


def sentence(passed_over: Mapping[str, int]) -> str:
    """Like `in_words`; names the readable formats if some of the files are images in other formats."""
    said = in_words(passed_over)
    return f"{said}: only {FORMATS} are read" if MEDIA & passed_over.keys() else said


def _kind_in_words(kind: str) -> str:
    return {NO_EXTENSION: "without an extension", NO_FILE: "pipe or device"}.get(kind, kind)


@dataclass
class Scan:
    """Walk through the files below a folder, depth first, by name; linked folders come last.

    Args:
        root: the folder; paths begin with it.
        wanted: selects files by name; by default images.
        passed_over: numbers of other files so far, by kind.
        faults: path and reason of folders that could not be listed so far.
        special: pipes, sockets and devices with the name of a wanted file so far.
        empty: folders without files so far; hidden files do not count.
    """

    root: str
    wanted: Callable[[str], bool] = is_image
    passed_over: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _links: list[str] = field(default_factory=list)  # to folders, visited after the real folders

    def files(self) -> Iterator[str]:
        """Yield the paths of the wanted files, and of broken links, which fail when they are read."""
        self._links = [self.root]
        while self._links:
            waiting = [self._inside(self._links.pop(0))]
            while waiting:
                path, is_folder = next(waiting[-1], ("", False))
                if not path:
                    waiting.pop()
                elif is_folder:
                    waiting.append(self._inside(path))
                else:
                    yield path

    def _inside(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Yield wanted files and folders in a folder, and whether each is a folder; nothing on a second visit."""
        try:
            about = os.stat(folder)  # noqa: PTH116
            if (about.st_dev, about.st_ino) in self._seen:
                return
            self._seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                shown = sorted((one.name, _kind(one), one.is_symlink()) for one in entries if not is_hidden(one.name))
        except OSError as error:
            self.faults.append((folder, f"this folder cannot be listed ({error.strerror})"))
            return
        if not shown:
            self.empty.append(folder)
        for name, kind, is_link in shown:
            path = f"{folder.rstrip('/')}/{name}"
            if kind == "folder":
                if is_link:
                    self._links.append(path)
                else:
                    yield path, True
                continue
            if kind == "special":
                if self.wanted(name):
                    self.special.append(path)
                continue
            count_kind(self.passed_over, name)
            if self.wanted(name):
                yield path, False


def has_image(folder: str) -> bool:
    """Whether there is an image below a folder. Stops at the first one; follows links once, as `Scan` does."""
    waiting, seen = [folder], set()
    while waiting:
        inside = waiting.pop()
        try:
            about = os.stat(inside)  # noqa: PTH116
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(inside) as entries:
                for one in entries:
                    if is_hidden(one.name):
                        continue
                    kind = _kind(one)
                    if kind == "folder":
                        waiting.append(one.path)
                    elif kind == "file" and is_image(one.name):
                        return True
        except OSError:  # the scan reports it
            continue
    return False


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file(follow_symlinks=False) or stat.S_ISREG(entry.stat().st_mode):
            return "file"
    except OSError:  # a broken link
        return "file"
    return "special"
