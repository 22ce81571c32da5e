"""Chromium and services for the tests of the page."""

from __future__ import annotations

import base64
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvicorn
from plain_runtime import PlainRuntime

from lookalike.serve.app import create_app
from lookalike.serve.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE = 20_000  # milliseconds for a busy machine
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
REFUSED = "Failed to load resource"  # what Chromium itself says of every answer that is an error
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

CHECKS = Path(__file__).with_name("page_checks.js")
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""
FILE = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


@dataclass
class Sight:
    """A page and what must not happen on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    may_be_refused: bool = False

    def check(self) -> None:
        """No error of the page's own, nothing against its policy, nothing asked of anybody else."""
        assert [error for error in self.errors if not (self.may_be_refused and error.startswith(REFUSED))] == []
        assert self.page.evaluate("window.violations") == []
        assert self.hosts <= {urlsplit(self.page.url).netloc}


@contextmanager
def seen(browser: Browser, **options: Any) -> Iterator[Sight]:
    """A new page with its own storage, watched."""
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    context.add_init_script(WATCH)
    context.add_init_script(path=CHECKS)
    page = context.new_page()
    sight = Sight(page)
    page.on(
        "console",
        lambda message: sight.errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: sight.errors.append(str(error)))
    page.on(
        "request",
        lambda request: sight.hosts.add(urlsplit(request.url).netloc) if request.url.startswith("http") else None,
    )
    try:
        yield sight
    finally:
        context.close()


def file_of(data: bytes, name: str = "photo.png", type: str = "image/png") -> Any:
    """A file as `set_input_files` takes it."""
    return {"name": name, "mimeType": type, "buffer": data}


def transfer(page: Page, data: bytes, name: str = "photo.png", type: str = "image/png") -> Any:
    """A file as it travels with a drop or a paste."""
    return page.evaluate_handle(FILE, [name, type, base64.b64encode(data).decode()])


def ask(page: Page, url: str, data: bytes) -> None:
    """Open the page and choose a picture; wait for the wall."""
    page.goto(url)
    page.set_input_files("#file", file_of(data))
    page.wait_for_selector("#wall li:not([hidden])")


class Site:
    """A service in a thread of this process, at one port for as long as it is there.

    Args:
        settings: what it serves; its port does not count.
        runtime: runs the network.
    """

    def __init__(self, settings: Settings, runtime: PlainRuntime) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self._settings, self._runtime = replace(settings, port=port), runtime

    def start(self) -> None:
        """Answer."""
        config = uvicorn.Config(
            create_app(self._settings, self._runtime),
            port=self._settings.port,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the service has ended at once"
            time.sleep(0.01)

    def stop(self) -> None:
        """Answer no more; the port is closed."""
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def site(settings: Settings, runtime: PlainRuntime) -> Iterator[Site]:
    """A service that runs until the end, or until it is stopped."""
    site = Site(settings, runtime)
    site.start()
    try:
        yield site
    finally:
        site.stop()
