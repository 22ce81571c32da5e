"""The page in trouble: missing keys, unusable files, a server that is busy, empty or gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from browsing import Sight, Site, ask, file_of, site
from numpy.typing import NDArray
from plain_runtime import PlainRuntime
from serve_client import encoded
from serve_process import serving

from lookalike import Gallery
from lookalike.gallery.store.common import EXACT_BELOW
from lookalike.models.pretrained import ImageModel
from lookalike.models.runtime import Outputs
from lookalike.serve.settings import Settings
from small_gallery import rows

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import expect

pytest_plugins = ("page_fixtures",)

READ, WRITE = "a-key-that-reads-123", "a-key-that-writes-456"


@pytest.fixture(scope="module")
def locked(gallery_of: Callable[[Path], Path], unsure_model: Path, browser: object) -> Iterator[str]:
    """A service with both keys, whose model calls everything unknown."""
    keys = {"LOOKALIKE_READ_KEY": READ, "LOOKALIKE_WRITE_KEY": WRITE}
    with serving(gallery_of(unsure_model), environ=keys) as service:
        yield service.url


@pytest.fixture
def opened(settings: Settings, runtime: PlainRuntime, browser: object) -> Iterator[Site]:
    """A service without keys, that takes small bodies only."""
    with site(Settings(gallery=settings.gallery, max_body_bytes=100_000, max_pixels=1_000_000), runtime) as opened:
        yield opened


def enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill(key)
    page.keyboard.press("Enter")


def test_the_page_asks_for_the_read_key_and_keeps_it_in_the_tab(sight: Sight, locked: str) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{locked}?id=1&threshold=none")
    dialog = page.get_by_role("dialog", name="Key required")
    expect(dialog.get_by_label("Key")).to_be_focused()
    enter(page, "")
    expect(dialog.get_by_role("alert")).to_have_text("Enter a key.")
    enter(page, "a-wrong-key-of-twenty")
    expect(dialog.get_by_role("alert")).to_contain_text("The server did not accept this key.")
    page.keyboard.press("Escape")
    expect(page.locator("#trouble")).to_contain_text("This service requires its read key")
    page.get_by_role("button", name="Enter the key").click()
    enter(page, READ)
    expect(page.locator("#wall .frame.loaded")).to_have_count(11)
    expect(page.locator("#image.loaded img")).to_be_visible()
    page.reload()
    expect(page.locator("#wall .frame.loaded")).to_have_count(11)
    assert READ not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    assert READ not in page.content()


def test_the_page_asks_for_the_write_key_to_change_items(sight: Sight, locked: str) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{locked}?threshold=none")
    enter(page, READ)
    expect(page.locator("#reach")).to_contain_text("12 images")
    page.set_input_files("#file", file_of(encoded(55, "PNG")))
    page.get_by_text("Add to the gallery", exact=True).click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("dialog", name="Write key required")).to_be_visible()
    enter(page, READ)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("This is not the write key.")
    enter(page, WRITE)
    expect(page.locator("#done")).to_contain_text("Added as item 13.")
    page.locator("#done").get_by_role("link").click()
    page.get_by_role("button", name="Remove from the gallery").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#done")).to_have_text("Removed from the gallery.")
    headers = {"Authorization": f"Bearer {READ}"}
    assert httpx.get(f"{locked}v1/items/13", headers=headers).status_code == 404
    assert httpx.get(f"{locked}v1/about", headers=headers).json()["gallery"]["items"] == 12


def test_the_write_key_opens_everything(sight: Sight, locked: str) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{locked}?id=1&threshold=none")
    enter(page, WRITE)
    expect(page.locator("#wall .frame.loaded")).to_have_count(11)


def test_an_unknown_image_shows_the_best_guesses(sight: Sight, locked: str) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{locked}?id=1")
    enter(page, READ)
    expect(page.locator("#what .verdict")).to_have_text("Unknown")
    expect(page.locator("#what")).to_contain_text("below the threshold of 99\u00a0%")
    expect(page.locator("#what .bars.unsure li")).to_have_count(3)
    expect(page.locator("#live")).to_contain_text("Unknown. Best guess:")


@pytest.mark.parametrize(
    ("data", "name", "type", "said"),
    [
        (b"these are words", "words.jpg", "image/jpeg", "Not an image in a format that can be read. Use JPEG,"),
        (b"", "empty.png", "image/png", "This file is empty."),
        (
            bytes(100_001),
            "large.png",
            "image/png",
            "This file has 100\u00a0kB; the server accepts 100\u00a0kB at most.",
        ),
        (encoded(1)[:400], "cut.jpg", "image/jpeg", "Replace it."),
        (encoded(1, "PNG", (1001, 1000)), "wide.png", "image/png", "More than 1,000,000 pixels. Make it smaller."),
    ],
    ids=["words", "empty", "large", "cut", "wide"],
)
def test_unusable_files_show_an_error(sight: Sight, opened: Site, data: bytes, name: str, type: str, said: str) -> None:
    page, sight.may_be_refused = sight.page, True
    if name == "wide.png":
        data = encoded(0, "JPEG", (1001, 1000))
    page.goto(opened.url)
    expect(page.locator("#reach")).not_to_be_empty()
    page.set_input_files("#file", file_of(data, name, type))
    expect(page.locator("#trouble")).to_contain_text(said)
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert "422" not in page.locator("main").inner_text()
    ask(page, opened.url, encoded(2, "PNG"))
    expect(page.locator("#trouble")).to_be_hidden()


@pytest.mark.parametrize("data", [b"these are words", b"", bytes(100_001)], ids=["refused", "empty", "large"])
def test_screen_readers_do_not_hear_the_last_result_after_an_error(sight: Sight, opened: Site, data: bytes) -> None:
    page, sight.may_be_refused = sight.page, True
    ask(page, opened.url, encoded(2, "PNG"))
    expect(page.locator("#live")).to_contain_text("look-alikes")
    page.set_input_files("#file", file_of(data, "words.jpg", "image/jpeg"))
    expect(page.locator("#trouble")).to_be_visible()
    expect(page.locator("#live")).to_be_empty()
    page.wait_for_timeout(600)  # as long as what was about to be said would wait, and more
    expect(page.locator("#live")).to_be_empty()


def test_an_unknown_item_shows_an_error(sight: Sight, opened: Site) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{opened.url}?id=99")
    expect(page.locator("#trouble")).to_contain_text("no item 99")
    expect(page.locator("#wall li")).to_have_count(0)


def test_the_page_recovers_when_the_server_returns(sight: Sight, opened: Site) -> None:
    page, sight.may_be_refused = sight.page, True
    ask(page, opened.url, encoded(3, "PNG"))
    opened.stop()
    page.locator("#wall a").nth(1).click()
    expect(page.locator("#trouble")).to_contain_text("The server does not respond.")
    opened.start()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#wall li:not([hidden])")).to_have_count(11)
    expect(page.locator("#trouble")).to_be_hidden()


class Held(PlainRuntime):
    """A runtime that waits until it is let go."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__(model)
        self.go = threading.Event()
        self.go.set()

    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        self.go.wait(60)
        return super().run(pictures)


def test_a_busy_server_is_tried_again(sight: Sight, settings: Settings, model: ImageModel) -> None:
    page, sight.may_be_refused = sight.page, True
    held = Held(model)
    with site(Settings(gallery=settings.gallery, max_waiting=1, max_images=1), held) as busy:
        page.goto(busy.url)
        held.go.clear()
        page.set_input_files("#file", file_of(encoded(4, "PNG")))
        expect(page.locator("#waiting")).to_contain_text("The service is overloaded. Trying again in 1 s.")
        expect(page.locator("#image.loaded img")).to_be_visible()
        held.go.set()
        expect(page.locator("#wall li")).to_have_count(12)
        expect(page.locator("#what .label")).to_have_count(3)
        expect(page.locator("#waiting")).to_be_hidden()


def test_an_approximate_search_can_be_made_exact(
    page: Page, model_place: Path, runtime: PlainRuntime, tmp_path: Path
) -> None:
    with Gallery.create(tmp_path / "many.gallery", model_place) as gallery:
        gallery.store.add([replace(row, thumbnail=encoded(1)) for row in rows(EXACT_BELOW + 1, runtime.dim)])
    with site(Settings(gallery=str(tmp_path / "many.gallery")), runtime) as many:
        page.goto(many.url)
        page.set_input_files("#file", file_of(encoded(6, "PNG")))
        expect(page.locator("#status")).to_contain_text("approximate search")
        page.get_by_role("button", name="Search exactly").click()
        expect(page.locator("#status")).to_contain_text("exact search")
        expect(page.get_by_role("button", name="Search exactly")).to_be_hidden()
        assert "exact=true" in page.url


def test_the_page_works_without_a_gallery(page: Page, runtime: PlainRuntime) -> None:
    with site(Settings(), runtime) as bare:
        page.goto(bare.url)
        expect(page.locator("#reach")).to_contain_text("There is no gallery.")
        page.set_input_files("#file", file_of(encoded(6, "PNG")))
        expect(page.locator("#what .label")).to_have_count(3)
        expect(page.locator(".no-gallery")).to_be_visible()
        expect(page.locator("#threshold")).to_be_hidden()
        expect(page.get_by_text("Add to the gallery", exact=True)).to_be_hidden()


def test_an_empty_gallery_accepts_its_first_image(
    page: Page, runtime: PlainRuntime, model_place: Path, tmp_path: Path
) -> None:
    Gallery.create(tmp_path / "empty", model_place).close()
    with site(Settings(gallery=str(tmp_path / "empty")), runtime) as empty:
        page.goto(empty.url)
        expect(page.locator("#reach")).to_contain_text("The gallery is empty.")
        page.set_input_files("#file", file_of(encoded(7, "PNG")))
        expect(page.locator("#nothing")).to_have_text("The gallery is empty. You can add this image.")
        page.get_by_text("Add to the gallery", exact=True).click()
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("#done")).to_contain_text("Added as item 1.")
        expect(page.locator("#same")).to_contain_text("This file is already in the gallery: ")
