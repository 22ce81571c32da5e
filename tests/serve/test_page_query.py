"""The page in Chromium: search with a part of the image, for more like these and less like those."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from browsing import PHONE, ask, seen
from PIL import Image
from serve_process import serving

from lookalike import Gallery
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head
from small_gallery import ANIMALS, SIZE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import expect

pytest_plugins = ("page_fixtures",)

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def url(gallery_of: Callable[[Path], Path], calibrated_model: Path, browser: object) -> Iterator[str]:
    """A service on the twelve pictures."""
    with serving(gallery_of(calibrated_model), "--names") as service:
        yield service.url


@pytest.fixture(scope="module")
def wide(photos: Path) -> bytes:
    """A cat on the left and a dog on the right, in an image that is twice as wide as high."""
    image = Image.new("RGB", (128, 64))
    image.paste(Image.open(photos / "cat" / "1.png"), (0, 0))
    image.paste(Image.open(photos / "dog" / "2.png"), (64, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def ids(page: Page) -> list[int]:
    return [int(id) for id in page.locator("#wall li a").evaluate_all("links => links.map((one) => one.dataset.id)")]


def ready(page: Page) -> None:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def hits(url: str, query: str, data: bytes | None = None) -> list[int]:
    answer = httpx.post(f"{url}v1/search?k=24&{query}", content=data, headers=PNG if data else {})
    return [hit["id"] for hit in answer.json()["hits"]]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the image, from and to shares of its width and height."""
    frame = page.locator("#image").bounding_box()
    assert frame is not None
    width, height = frame["width"] - 2, frame["height"] - 2  # without the border
    scale = min(width / 128, height / 64)
    left = frame["x"] + 1 + (width - 128 * scale) / 2
    top = frame["y"] + 1 + (height - 64 * scale) / 2
    points = [(left + x * 128 * scale, top + y * 64 * scale) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=3)
    page.mouse.up()


def test_a_box_on_the_image_searches_with_that_part(page: Page, url: str, wide: bytes) -> None:
    with page.expect_response(re.compile("v1/search")):
        ask(page, f"{url}?threshold=none", wide)
    whole = ids(page)
    with page.expect_response(re.compile("v1/search.*box=")) as asked:
        drag(page, (0.5, 0.0), (1.0, 1.0))
    box = [int(one) for one in parse_qs(urlsplit(asked.value.url).query)["box"][0].split(",")]
    assert box == pytest.approx([64, 0, 128, 64], abs=2)
    ready(page)
    expect(page.locator("#wall li").first).to_contain_text("dog")
    assert ids(page) == hits(url, f"box={','.join(map(str, box))}", wide)
    expect(page.locator("#box")).to_be_visible()
    drag(page, (0.2, 0.2), (0.2, 0.2))  # a click changes nothing
    expect(page.locator("#box")).to_be_visible()
    with page.expect_response(re.compile("v1/search.*box=")):
        drag(page, (0.5, 1.0), (-0.5, -0.5))  # beyond the image
    ready(page)
    expect(page.locator("#wall li").first).to_contain_text("cat")
    page.get_by_role("button", name="Use the whole image").click()
    expect(page.locator("#box")).to_have_count(0)
    ready(page)
    assert ids(page) == whole


def test_the_box_is_moved_with_the_keyboard(page: Page, url: str, wide: bytes) -> None:
    ask(page, f"{url}?threshold=none", wide)
    page.get_by_role("button", name="Search with a part").click()
    box = page.locator("#box")
    expect(box).to_be_focused()
    expect(box).to_have_attribute("aria-label", re.compile("32, 16, 96, 48"))
    page.keyboard.press("ArrowRight")
    expect(box).to_have_attribute("aria-label", re.compile("38, 16, 102, 48"))
    page.keyboard.press("Shift+ArrowDown")
    expect(box).to_have_attribute("aria-label", re.compile("38, 16, 102, 51"))
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(box).to_have_attribute("aria-label", re.compile("64, 16, 128, 51"))
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)


def test_items_have_no_box(page: Page, url: str) -> None:
    page.goto(f"{url}?id=2&threshold=none")
    page.wait_for_selector("#wall li")
    expect(page.get_by_role("button", name="Search with a part")).to_be_hidden()


def test_more_like_and_less_like_a_hit(page: Page, url: str, wide: bytes) -> None:
    ask(page, f"{url}?threshold=none", wide)
    first, second = ids(page)[0], ids(page)[-1]
    page.locator("#wall li").first.hover()
    page.locator("#wall li").first.get_by_role("button", name="More like").click()
    expect(page.locator("#refine-list li")).to_have_count(1)
    ready(page)
    expect(page.locator(f"#wall a[data-id='{first}']")).to_have_count(0)
    page.locator(f"#wall a[data-id='{second}']").focus()
    page.keyboard.press("-")
    expect(page.locator("#refine-list li.less")).to_have_count(1)
    ready(page)
    expect(page.locator(f"#wall a[data-id='{second}']")).to_have_count(0)
    expect(page.locator("#wall a").first).to_be_focused()  # the keyboard goes on from there
    assert ids(page) == hits(url, f"id={first}&unlike={second}", wide)
    assert parse_qs(urlsplit(page.url).query)["like"] == [str(first)]
    page.get_by_role("button", name=f"Less like item {second}: leave it out").click()
    expect(page.locator("#refine-list li")).to_have_count(1)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#refine")).to_be_hidden()


def test_the_address_holds_the_refined_search_of_an_item(page: Page, url: str) -> None:
    page.goto(f"{url}?id=2&like=3&unlike=7&threshold=none")
    page.wait_for_selector("#wall li")
    assert ids(page) == hits(url, "id=2&id=3&unlike=7")
    expect(page.locator("#refine-list .frame.loaded")).to_have_count(2)
    page.locator("#wall a").first.click()
    expect(page.locator("#refine")).to_be_hidden()  # another query
    page.go_back()
    expect(page.locator("#refine-list li")).to_have_count(2)


@pytest.fixture(scope="module")
def classless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without classes, only vectors."""
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=ANIMALS,
        class_ids=ANIMALS,
        head=Head(dim=16),
        match_threshold=0.5,
    )
    network = create_model(config.name, config.num_classes, config.options, config.head)
    place = tmp_path_factory.mktemp("classless") / "model"
    ImageModel(network, config).save_pretrained(place)
    return place


def test_without_classes_the_neighbours_vote(
    page: Page, gallery_of: Callable[[Path], Path], photos: Path, classless: Path
) -> None:
    with serving(gallery_of(classless)) as service:
        data = (photos / "cat" / "1.png").read_bytes()
        ask(page, f"{service.url}?threshold=none", data)
        (told,) = httpx.post(f"{service.url}v1/vote", content=data, headers=PNG).json()["votes"]
        expect(page.locator("#what .label")).to_have_text([one["label"] for one in told["labels"]])
        expect(page.locator("#what")).to_contain_text("Vote of 11 labelled look-alikes")


def test_a_vote_without_voters_is_said(page: Page, photos: Path, classless: Path, tmp_path: Path) -> None:
    own = photos / "cat" / "1.png"
    with Gallery.create(tmp_path / "one.gallery", classless) as gallery:
        gallery.add(photos, folder_labels=False)
        gallery.update(filter={"path": str(own)}, label="cat")
    with serving(tmp_path / "one.gallery") as service:
        ask(page, f"{service.url}?threshold=none", own.read_bytes())
        expect(page.locator("#what")).to_have_text("There are no labelled look-alikes to vote.")
        expect(page.locator("#live")).to_contain_text("There are no labelled look-alikes to vote.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def test_a_refined_search_is_accessible(browser: Browser, url: str, wide: bytes, scheme: Any, viewport: Any) -> None:
    is_phone = viewport["width"] < 600
    with seen(browser, viewport=viewport, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone,
              reduced_motion="reduce") as sight:  # fmt: skip
        page = sight.page
        ask(page, f"{url}?threshold=none", wide)
        page.get_by_role("button", name="Search with a part").click()
        ready(page)
        for place, key in ((0, "+"), (3, "-")):
            page.locator("#wall a").nth(place).focus()
            page.keyboard.press(key)
            expect(page.locator("#refine-list li")).to_have_count(1 + (place > 0))
            ready(page)
        for check in ("nameless", "small", "broken", "faint"):
            assert page.evaluate(f"checks.{check}()") == [], check
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        sight.check()
