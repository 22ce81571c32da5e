"""One file from one address: resumed where it broke, and checked against its checksum before it counts as whole.

Of a file that is not whole, `NAME.partial` holds what has arrived and `NAME.partial.json` the address, ETag, date and
size that the rest must have, too (RFC 9110, sections 13 and 14).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from lookalike.data.sources import File
from lookalike.errors import InputError
from lookalike.files import rename_durably

HOPS = 5  # redirections followed to what the Hub announces
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class MirrorError(Exception):
    """Why a mirror did not give a file; `again` when a second try may help."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason.rstrip("."))
        self.again = again


@contextmanager
def as_faults() -> Iterator[None]:
    """Turn what httpx raises inside this context into a `MirrorError`."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise MirrorError(str(error)) from None
    except httpx.HTTPError as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise MirrorError(reason, again=True) from None


def announced(client: httpx.Client, file: File) -> File:
    """The file with the checksum and size that the Hub announces for it, where none were published.

    The Hub's answer for a large file names the SHA-256 in X-Linked-Etag, before it leads on to the storage.
    """
    if file.checksum:
        return file
    request: httpx.Request | None = client.build_request("HEAD", file.url)
    for _ in range(HOPS):
        if request is None:
            break
        response = client.send(request, follow_redirects=False)
        digest, size = response.headers.get("X-Linked-Etag", "").strip('"'), response.headers.get("X-Linked-Size", "")
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return replace(file, checksum=f"sha256:{digest}", size_bytes=int(size) if size.isdecimal() else None)
        if response.is_error:
            raise _refusal(response)
        request = response.next_request
    raise MirrorError(f"no SHA-256 is announced for {file.name}")


class Transfer:
    """One file from one address; `report` is called with the bytes that are there."""

    def __init__(self, client: httpx.Client, file: File, place: Path, report: Callable[[int], None]) -> None:
        self.client = client
        self.file = file
        self.report = report
        self.whole = place / file.name
        self.partial = place / f"{file.name}.partial"
        self.notes = place / f"{file.name}.partial.json"

    def arrived(self) -> int:
        """Bytes of the partial file."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def run(self) -> None:
        """Fetch what is missing, check the whole, put it in its place."""
        if self.whole.exists() and self._is_right(self.whole):
            self.report(self.whole.stat().st_size)
            return
        notes = self._read_notes()
        have = self.arrived() if notes else 0
        if not have or have != notes["size"]:
            self._fetch(have, notes)
        if not self._is_right(self.partial):
            self._discard()
            kind = self.file.checksum.partition(":")[0].upper()
            raise MirrorError(f"what it sent does not have the published {kind}", again=have > 0)
        rename_durably(self.partial, self.whole)
        self.notes.unlink(missing_ok=True)

    def _fetch(self, have: int, notes: dict[str, Any]) -> None:
        headers = {"Range": f"bytes={have}-", "If-Range": notes["etag"] or notes["date"]} if have else {}
        with self.client.stream("GET", self.file.url, headers=headers) as response:
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return  # all of it is here: what was announced first was too much
                self._discard()
                raise MirrorError("it has no such part as was asked for", again=True)
            if response.status_code == 206 and have:
                total = self._check_part(response, have, notes)
            elif response.status_code == 200:
                have, total = 0, self._begin(response)
            else:
                raise _refusal(response)
            self._check_room(have, total)
            with self.partial.open("ab") as file:
                for chunk in response.iter_raw():
                    have += file.write(chunk)
                    if total is not None and have > total:
                        break
                    self.report(have)
        if total is not None and have != total:
            if have > total:
                self._discard()
            raise MirrorError(f"the connection ended at {have:,} of {total:,} bytes", again=have < total)

    def _begin(self, response: httpx.Response) -> int | None:
        """Start from nothing: an empty partial file first, then the notes on what is to fill it."""
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else self.file.size_bytes
        if self.file.size_bytes is not None and size != self.file.size_bytes:
            raise MirrorError(f"it has {size:,} bytes where {self.file.size_bytes:,} were published")
        etag = response.headers.get("ETag", "")
        notes = {
            "url": self.file.url,
            "etag": "" if etag.startswith("W/") else etag,  # a weak one does not promise the same bytes
            "date": response.headers.get("Last-Modified", ""),
            "size": size,
        }
        self.partial.write_bytes(b"")
        beside = self.notes.with_suffix(".writing")
        beside.write_text(json.dumps(notes), encoding="utf-8")
        beside.replace(self.notes)
        return size

    def _check_part(self, response: httpx.Response, have: int, notes: dict[str, Any]) -> int | None:
        """The size of the whole, when this is the rest of what the notes speak of."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        same_tag = response.headers.get("ETag", notes["etag"]) == notes["etag"] or not notes["etag"]
        same_size = match is not None and match[2] in {"*", str(notes["size"])}
        if match is None or int(match[1]) != have or not same_tag or not same_size:
            self._discard()
            raise MirrorError("it sent another part than the one asked for", again=True)
        return notes["size"]  # type: ignore[no-any-return]

    def _read_notes(self) -> dict[str, Any]:
        """What the partial file belongs to; nothing when it cannot be told, and then nothing can be resumed."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            fits = notes["url"] == self.file.url and notes["size"] is not None and bool(notes["etag"] or notes["date"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return notes if fits else {}

    def _check_room(self, have: int, total: int | None) -> None:
        needed, free = (total or 0) - have, shutil.disk_usage(self.partial.parent).free
        if needed > free:
            raise InputError(
                f"{self.partial.parent}: {needed / 2**20:,.0f} MiB are to come, {free / 2**20:,.0f} MiB are free.",
                "Free some, or choose another folder; what has arrived is kept.",
            )

    def _is_right(self, path: Path) -> bool:
        kind, _, digest = self.file.checksum.partition(":")
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest() == digest

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _refusal(response: httpx.Response) -> MirrorError:
    code = response.status_code
    phrase = HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else ""
    return MirrorError(f"{code} {phrase}".strip(), again=code in TRANSIENT)
