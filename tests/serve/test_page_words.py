"""Words on the page in Chromium: the box for them, their hits, "back", and no box where the model knows no words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Sight
from serve_process import serving

from lookalike import Gallery

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import expect

pytest_plugins = ("page_fixtures",)


@pytest.fixture(scope="module")
def url_of_words(tmp_path_factory: pytest.TempPathFactory, clip: Path, photos: Path, browser: object) -> Iterator[str]:
    place = tmp_path_factory.mktemp("words") / "photos.gallery"
    with Gallery.create(place, clip) as gallery:
        gallery.add(photos)
    with serving(place, "--names", "--runtime", "torch") as service:
        yield service.url


def test_words_find_images_and_can_be_shared(sight: Sight, url_of_words: str) -> None:
    page = sight.page
    page.goto(url_of_words)
    box = page.get_by_role("searchbox", name="Words to search with")
    expect(box).to_be_visible()
    box.fill("a dog on a beach")
    box.press("Enter")
    expect(page.locator("#wall li:not([hidden])")).to_have_count(12)
    expect(page.locator("#title")).to_have_text("“a dog on a beach”")
    expect(page.locator("#image")).to_be_hidden()
    assert "text=a+dog+on+a+beach" in page.url
    page.reload()
    expect(page.locator("#wall li:not([hidden])")).to_have_count(12)
    page.locator("#wall li a").first.click()
    expect(page.locator("#image")).to_be_visible()
    assert "text=" not in page.url
    page.go_back()
    expect(page.locator("#title")).to_have_text("“a dog on a beach”")


def test_there_is_no_box_for_words_that_the_model_does_not_know(
    sight: Sight, shared_gallery: Path, browser: object
) -> None:
    with serving(shared_gallery) as service:
        sight.page.goto(service.url)
        expect(sight.page.locator("#items")).to_have_text("12 images")
        expect(sight.page.locator("#words")).to_be_hidden()
