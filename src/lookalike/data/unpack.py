"""Unpack zips from untrusted sources: only regular files, only inside the target, within limits of size."""

from __future__ import annotations

import lzma
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

from lookalike.data.image_folder import open_zip
from lookalike.errors import InputError

CHUNK = 1 << 20  # bytes in memory at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ZipLimits:
    """Limits of a zip. They are checked on the unpacked bytes, not on the sizes that the zip declares.

    Args:
        files: number of files.
        size_bytes: unpacked size of all files.
        ratio: unpacked size over size of the zip. Image files are compressed already and hardly shrink.
        small_bytes: the ratio does not apply up to this unpacked size.
    """

    files: int = 2_000_000
    size_bytes: int = 200 << 30
    ratio: int = 50
    small_bytes: int = 64 << 20

    def allowed(self, packed: int) -> int:
        """Return the allowed unpacked size of a zip of `packed` bytes."""
        return min(self.size_bytes, max(self.small_bytes, self.ratio * packed))


def unpack_zip(
    path: Path,
    target: Path,
    *,
    places: Mapping[str, str] | None = None,
    limits: ZipLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Unpack files of a zip into an empty folder. After an error the folder is empty again.

    Args:
        path: the zip.
        target: an empty folder, such as one of `files.atomic_folder`.
        places: maps names in the zip to paths relative to the target; by default each file keeps its name.
        limits: of sizes and numbers.
        progress: called with (files done, files in all).

    Raises:
        InputError: a damaged or encrypted zip; a name that leads out of the target, is a link or a device, or occurs
            twice; exceeded limits; a full disk.
    """
    limits = limits or ZipLimits()
    try:
        with open_zip(path) as archive:
            if places is None:
                places = {info.filename: info.filename for info in archive.infolist() if not info.is_dir()}
            _check(path, archive, places, target, limits)
            budget = limits.allowed(path.stat().st_size)
            for done, (name, place) in enumerate(places.items(), start=1):
                budget -= _unpack_one(path, archive, name, target / place, budget)
                if progress is not None and (done % 500 == 0 or done == len(places)):
                    progress(done, len(places))
    except BaseException:
        for child in target.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        raise


def _check(path: Path, archive: zipfile.ZipFile, places: Mapping[str, str], target: Path, limits: ZipLimits) -> None:
    """Check the table of contents before anything is written."""
    if len(places) > limits.files:
        _refuse(path, f"{len(places):,} files, more than {limits.files:,}")
    often = Counter(archive.namelist())
    for name, place in places.items():
        if often[name] > 1:
            _refuse(path, f"'{name}' stands {often[name]} times in it")
        if not (_is_inside(name) and _is_inside(place)):
            _refuse(path, f"'{name}' leads out of the zip")
        kind = stat.S_IFMT(archive.getinfo(name).external_attr >> 16)
        if kind not in {0, stat.S_IFREG}:
            _refuse(path, f"'{name}' is a link or a device, no plain file")
    needed = sum(archive.getinfo(name).file_size for name in places)
    if needed > limits.allowed(path.stat().st_size):
        _refuse(path, f"{needed / 2**20:,.0f} MiB would come out of it, more than a zip of this size holds of images")
    if needed > (free := shutil.disk_usage(target).free):
        room = f"{needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free"
        raise InputError(f"{target.parent}: {room}.", "Free some, or choose another folder.")


def _is_inside(name: str) -> bool:
    """Whether a name stays below the target folder on every operating system."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "\\" not in name and not PureWindowsPath(name).anchor and ".." not in parts


def _unpack_one(path: Path, archive: zipfile.ZipFile, name: str, place: Path, budget: int) -> int:
    """Write one file and return its size; refuse more than `budget` bytes."""
    written = 0
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            for chunk in _chunks(path, archive, name):
                written += len(chunk)
                if written > budget:
                    _refuse(path, f"more comes out of it than a zip of this size holds of images, at '{name}'")
                file.write(chunk)
    except (FileExistsError, NotADirectoryError):
        _refuse(path, f"'{name}' has the same place as another file in it")
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}).", "Choose another folder.") from None
    return written


def _chunks(path: Path, archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as packed:
            while chunk := packed.read(CHUNK):
                yield chunk
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: '{name}' is damaged ({error}).", "Download it again.") from None


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path}: {what}.", "Use a zip from a source that you trust.")
