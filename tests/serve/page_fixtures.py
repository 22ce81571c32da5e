"""Fixtures for the tests of the page: a browser, a watched page, models and galleries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import CHROMIUM, DESKTOP, PATIENCE, Sight, seen

from lookalike import Gallery
from lookalike.models.pretrained import ImageModel, load
from small_gallery import model_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; where there is none, the test is left out."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def sight(browser: Browser) -> Iterator[Sight]:
    """A page on a desktop; `Sight.check` holds in the end."""
    with seen(browser, viewport=DESKTOP, color_scheme="light") as sight:
        yield sight
        sight.check()


@pytest.fixture
def page(sight: Sight) -> Page:
    """The page of `sight`."""
    return sight.page


@pytest.fixture(scope="session")
def calibrated_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a threshold that some of the twelve pictures pass, and others do not."""
    return model_folder(tmp_path_factory.mktemp("calibrated") / "model", threshold=0.9)


@pytest.fixture(scope="session")
def unsure_model(tmp_path_factory: pytest.TempPathFactory, calibrated_model: Path) -> Path:
    """The same model, that calls everything unknown."""
    model = load(calibrated_model)
    place = tmp_path_factory.mktemp("unsure") / "model"
    config = model.config.model_copy(update={"unknown_threshold": 0.99})
    ImageModel(model.network, config).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def gallery_of(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Callable[[Path], Path]:
    """What makes a new gallery of the twelve pictures with a model."""

    def make(model: Path) -> Path:
        place = tmp_path_factory.mktemp("page") / "photos.gallery"
        with Gallery.create(place, model) as gallery:
            gallery.add(photos)
            own = replace(gallery.about, own_threshold=gallery.about.threshold, own_rows=12, own_labels=3)
            gallery.store.calibrated(own)
        return place

    return make
