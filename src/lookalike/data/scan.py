"""One walk through a folder, for training, prediction and galleries alike: which files in it are images.

Hidden files and folders (`.x`, also the `._x.jpg` of a Mac) and `__MACOSX` are left out. Every real folder is visited
once, however many symbolic links lead to it, so that a loop of links ends. Pipes, sockets and devices are not opened.
Other files that are no images by name are counted by their kind.
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

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})  # what a system keeps beside images: not worth a word
NO_EXTENSION = "(none)"
NO_FILE = "(not a regular file)"
KINDS_NAMED = 8  # in a sentence
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF and PPM"
_MEDIA = (  # kinds that people take for images, or films of them: they come first in a sentence
    ".3fr .3gp .ai .arw .avi .avif .avifs .cr2 .cr3 .crw .dib .dng .eps .erf .exr .fff .hdr .heic .heics .heif .heifs "
    ".hif .ico .iiq .insp .j2k .jp2 .jpf .jpm .jpx .jxl .jxr .kdc .m2ts .m4v .mef .mkv .mos .mov .mp4 .mpeg .mpg .mpo "
    ".mrw .mts .nef .nrw .orf .pam .pbm .pcx .pdf .pef .pfm .pnm .psb .psd .qoi .raf .raw .rw2 .sr2 .srf .srw .svg "
    ".svgz .tga .webm .wmv .x3f .xcf"
)
MEDIA = frozenset(_MEDIA.split())


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return "." in name and f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a path, with "/" between its parts, goes through a hidden folder or names a hidden file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def kind_of(name: str) -> str:
    """The kind that a file is counted under: its extension in lower case, such as ".heic"."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return f".{printable(extension).lower()}" if dot and stem and extension else NO_EXTENSION


def modified_ns(about: os.stat_result) -> int:
    """The time of change in nanoseconds since 1970, as far as 64 bits with a sign reach: the years 1677 to 2262."""
    return max(-(2**63), min(about.st_mtime_ns, 2**63 - 1))


def read_regular(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a regular file, at most so many; a pipe or device is refused, not waited for. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(opened, "rb") as file:  # noqa: PTH123  (of a descriptor)
        return file.read(most)


def count_kind(passed_over: Counter[str], name: str) -> None:
    """Count a file that is no image by name; images and files of the system do not count."""
    if not is_image(name) and name.rpartition("/")[2].lower() not in SYSTEM_FILES:
        passed_over[kind_of(name)] += 1


def printable(path: str) -> str:
    r"""The path, with what is not UTF-8 in it written as \xff and so on."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_names(root: str, names: Iterator[str]) -> None:
    r"""Refuse names that are not UTF-8: neither a catalog nor JSON can hold them.

    Raises:
        InputError: naming the first one, with its bytes as `\xff`, and how many there are.
    """
    bad = [name for name in names if not name.isascii() and printable(name) != name]
    if bad:
        more = f", nor are {len(bad) - 1:,} others" if len(bad) > 1 else ""
        raise InputError(f"{printable(root)}: the name '{printable(min(bad))}' is not UTF-8{more}.", "Rename it.")


def in_words(passed_over: Mapping[str, int]) -> str:
    """The files that were passed over, in a sentence without a full stop; "" where there are none.

    >>> in_words({".txt": 1, ".heic": 1200, "(none)": 2})
    '1,200 .heic, 2 without an extension and 1 .txt files were left alone'
    """
    kinds = sorted(passed_over.items(), key=lambda one: (one[0] not in MEDIA, -one[1], one[0]))
    said = [f"{count:,} {_kind_in_words(kind)}" for kind, count in kinds[:KINDS_NAMED]]
    if rest := sum(count for _, count in kinds[KINDS_NAMED:]):
        said.append(f"{rest:,} other")
    if not said:
        return ""
    listed = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    return f"{listed} {'file was' if sum(passed_over.values()) == 1 else 'files were'} left alone"


def sentence(passed_over: Mapping[str, int]) -> str:
    """As `in_words`, with what can be read where some of the files are images of other kinds."""
    said = in_words(passed_over)
    return f"{said}: only {FORMATS} are read" if MEDIA & passed_over.keys() else said


def _kind_in_words(kind: str) -> str:
    return {NO_EXTENSION: "without an extension", NO_FILE: "pipe or device"}.get(kind, kind)


@dataclass
class Scan:
    """The files below a folder, depth first, by name; links to folders come last.

    Args:
        root: the folder; paths begin with it.
        wanted: which files by name; by default images.
        passed_over: how many other files of each kind there are, as far as the scan has come.
        faults: path and reason of folders that cannot be listed, likewise.
        special: pipes, sockets and devices that are called like a wanted file, likewise.
        empty: folders that hold nothing but hidden files, likewise.
    """

    root: str
    wanted: Callable[[str], bool] = is_image
    passed_over: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _links: list[str] = field(default_factory=list)  # to folders; they wait until the real folders are done

    def files(self) -> Iterator[str]:
        """Paths of the wanted files; of links that lead nowhere, too: whoever reads them says what is wrong."""
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
        """Wanted files and folders in a folder, and which of both; nothing when it was there before."""
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
    """Whether there is an image below a folder; it stops at the first one, and follows links once, as `Scan` does."""
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
        except OSError:  # the scan itself will say so
            continue
    return False


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file(follow_symlinks=False) or stat.S_ISREG(entry.stat().st_mode):
            return "file"
    except OSError:  # a link that leads nowhere
        return "file"
    return "special"
