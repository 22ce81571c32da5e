"""A real HTTP server on this machine that can do what servers on the network do: break off, change, refuse, lead on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

STEP = 8192  # bytes written at a time


@dataclass
class Page:
    """What lies at a path.

    Args:
        body: its bytes.
        etag: its ETag; none where empty.
        date: its Last-Modified; none where empty.
        ranges: whether Range is understood.
        minds_if_range: whether If-Range is.
        part_at: where the part begins that is sent when one is asked for; by default where it was asked for.
        cuts: after how many bytes the connection breaks, one entry for each GET; whole when they are used up.
        statuses: what is answered first, one entry for each request.
        redirect: where to go instead.
        headers: further ones.
        length: Content-Length, where it is not to be the truth; -1 for none at all.
        pace: seconds between two steps of the body.
    """

    body: bytes = b""
    etag: str = '"one"'
    date: str = ""
    ranges: bool = True
    minds_if_range: bool = True
    part_at: int | None = None
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    pace: float = 0.0


@dataclass
class Site:
    """A running server: `pages` by path, and the `requests` it got as (method, path, headers in lower case)."""

    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def ranges(self) -> list[str]:
        """The Range of each GET, empty for the whole."""
        return [headers.get("range", "") for method, _, headers in self.requests if method == "GET"]


@contextmanager
def serving() -> Iterator[Site]:
    """A site without pages, until the end of the context."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    Handler.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Handler.site
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the other side may leave when it likes
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: ClassVar[Site]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path  # a proxy is asked for the whole address
        asked = {key.lower(): value for key, value in self.headers.items()}
        self.site.requests.append((self.command, self.path, asked))
        page = self.site.pages.get(path)
        if page is None:
            self._plain(404)
        elif page.statuses:
            self._plain(page.statuses.pop(0))
        elif page.redirect:
            self._plain(302, {"Location": page.redirect, **page.headers})
        else:
            self._send(page, asked)

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, page: Page, asked: dict[str, str]) -> None:
        start, size = 0, len(page.body)
        fresh = not page.minds_if_range or asked.get("if-range") in {None, page.etag, page.date}
        if page.ranges and fresh and "range" in asked:
            start = int(asked["range"].removeprefix("bytes=").partition("-")[0])
            start = start if page.part_at is None else page.part_at
            if start >= size:
                self._plain(416, {"Content-Range": f"bytes */{size}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        given = {"ETag": page.etag, "Last-Modified": page.date, **page.headers}
        for key, value in given.items():
            if value:
                self.send_header(key, value)
        if page.length is None:
            self.send_header("Content-Length", str(size - start))
        elif page.length >= 0:
            self.send_header("Content-Length", str(page.length))
        self.end_headers()
        if self.command == "GET":
            self._body(page, start)

    def _body(self, page: Page, start: int) -> None:
        cut = page.cuts.pop(0) if page.cuts else None
        end = len(page.body) if cut is None else min(start + cut, len(page.body))
        try:
            for at in range(start, end, STEP):
                self.wfile.write(page.body[at : min(at + STEP, end)])
                self.wfile.flush()
                if page.pace:
                    time.sleep(page.pace)
        except OSError:  # the other side is gone
            pass
        if cut is not None or page.length is not None:
            self.close_connection = True
