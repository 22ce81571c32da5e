"""The look and the accessibility of the page: names, contrast, keyboard, phones, dark and light, a stable layout.

Set LOOKALIKE_SCREENSHOTS to a folder to write the screenshots of the README there.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import DESKTOP, PHONE, ask, file_of, seen
from PIL import Image
from serve_process import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import expect

pytest_plugins = ("page_fixtures",)

PASTE_NOTHING = """document.body.dispatchEvent(
  new ClipboardEvent("paste", { clipboardData: new DataTransfer(), bubbles: true }))"""
SCREENSHOTS = os.environ.get("LOOKALIKE_SCREENSHOTS")
SHOWN_GALLERY = os.environ.get("LOOKALIKE_SCREENSHOTS_GALLERY")  # of real pictures, whose model is remembered
SHOWN_PICTURE = os.environ.get("LOOKALIKE_SCREENSHOTS_PICTURE")  # that is asked about


@pytest.fixture(scope="module")
def url(gallery_of: Callable[[Path], Path], calibrated_model: Path, browser: object) -> Iterator[str]:
    """A service on the twelve pictures."""
    with serving(gallery_of(calibrated_model), "--names") as service:
        yield service.url


@pytest.fixture(scope="module")
def cat(photos: Path) -> bytes:
    """A picture that is in the gallery."""
    return (photos / "cat" / "1.png").read_bytes()


def stages(page: Page, url: str, picture: bytes) -> Iterator[str]:
    """The page in all the states that a person may see."""
    page.goto(url)
    expect(page.locator("#reach")).not_to_be_empty()
    yield "start"
    ask(page, url, picture)
    expect(page.locator("#what .label")).to_have_count(3)
    page.get_by_text("Add to the gallery", exact=True).click()
    yield "picture"
    page.locator("#labels-button").click()
    page.get_by_role("checkbox", name="cat").check()
    expect(page.locator("#chips li")).to_have_count(1)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    yield "labels"
    page.keyboard.press("Escape")
    page.goto(f"{url}?id=2&threshold=0.99")
    expect(page.locator("#nothing")).to_be_visible()
    page.get_by_role("button", name="Remove from the gallery").click()
    page.evaluate(PASTE_NOTHING)
    yield "item, removal, trouble"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "viewport", [DESKTOP, PHONE, {"width": 320, "height": 640}], ids=["desktop", "phone", "narrow"]
)
def test_the_page_is_accessible(browser: Browser, url: str, cat: bytes, scheme: Any, viewport: Any) -> None:
    """Names, sizes, references, contrast and no sideways scrolling: in each state, in both schemes, on each screen."""
    is_phone = viewport["width"] < 600
    with seen(
        browser, viewport=viewport, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone, reduced_motion="reduce"
    ) as sight:
        page = sight.page
        for stage in stages(page, url, cat):
            assert page.evaluate("checks.nameless()") == [], stage
            assert page.evaluate("checks.small()") == [], stage
            assert page.evaluate("checks.broken()") == [], stage
            assert page.evaluate("checks.faint()") == [], stage
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], stage
            assert page.get_by_role("button", name="Take a photo").is_visible() == (is_phone and stage == "start")
        sight.check()


def test_the_accessibility_checks_find_errors(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#reach")).not_to_be_empty()
    page.evaluate("""() => {
      const bad = document.createElement("div");
      bad.innerHTML = `<button id="home"></button><input aria-describedby="nowhere"><img><p>pale</p>`;
      bad.querySelector("p").style.color = "#999";
      bad.querySelector("button").style.minHeight = bad.querySelector("button").style.height = "10px";
      document.querySelector("main").append(bad);
    }""")
    assert len(page.evaluate("checks.nameless()")) == 2
    assert len(page.evaluate("checks.small()")) >= 1
    assert {"twice: home", "aria-describedby: nowhere"} < set(page.evaluate("checks.broken()"))
    assert [text.split()[1] for text in page.evaluate("checks.faint()")] == ["pale"]


def test_every_control_is_reached_with_tab_and_shows_focus(page: Page, url: str, cat: bytes) -> None:
    page.goto(url)
    expect(page.locator("#reach")).not_to_be_empty()
    page.set_input_files("#file", file_of(cat))
    expect(page.locator("#wall a").first).to_be_visible()
    expect(page.locator("#add")).to_be_visible()
    reached = []
    page.locator("#home").focus()
    for _ in range(30):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "BODY" or len(reached) != len(set(reached)):
            break
        ring = "(([a, b]) => a.outlineStyle + b)([getComputedStyle(document.activeElement), document.activeElement.id])"
        if reached[-1] != "threshold":  # whose thumb has the ring
            assert page.evaluate(ring).startswith("solid"), reached[-1]
        page.keyboard.press("Tab")
    assert {"home", "again", "theme", "SUMMARY", "labels-button", "threshold", "many", "A"} <= set(reached)


def test_colours_follow_the_system_and_the_switch(browser: Browser, url: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(245, 245, 242)", "rgb(17, 19, 21)"
    with seen(browser, viewport=DESKTOP, color_scheme="dark") as sight:
        page = sight.page
        page.goto(url)
        assert page.evaluate(ground) == dark
        page.get_by_role("button", name="Use light colours").click()
        assert page.evaluate(ground) == light
        page.reload()
        assert page.evaluate(ground) == light
        page.get_by_role("button", name="Use dark colours").click()
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="light")  # the choice was the system's, so it follows the system again
        expect(page.get_by_role("button", name="Use dark colours")).to_be_visible()
        assert page.evaluate(ground) == light
        sight.check()


def test_the_layout_does_not_move_when_thumbnails_load(page: Page, url: str, cat: bytes) -> None:
    held: list[Route] = []
    may_pass = threading.Event()

    def hold(route: Route) -> None:
        if may_pass.is_set():
            route.continue_()
        else:
            held.append(route)

    page.route("**/thumbnail", hold)
    ask(page, f"{url}?threshold=none", cat)
    expect(page.locator("#what .label")).to_have_count(3)
    expect(page.locator("#add")).to_be_visible()
    places = """[...document.querySelectorAll("#wall li, #rest, footer")].map(
      (one) => JSON.stringify(one.getBoundingClientRect()))"""
    before = page.evaluate(places)
    frame = page.locator("#wall .frame").first.bounding_box()
    assert frame is not None
    assert frame["height"] > 60, "no room is kept for the pictures"
    assert page.locator("#wall .frame.loaded").count() == 0
    may_pass.set()
    for route in held:
        route.continue_()
    expect(page.locator("#wall .frame.loaded")).to_have_count(11)  # all but the file itself
    assert page.evaluate(places) == before


def test_thumbnails_far_below_are_not_loaded(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 320, "height": 200})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("thumbnail") else None)
    page.goto(f"{url}?id=1&threshold=none")
    expect(page.locator("#wall li")).to_have_count(11)
    expect(page.locator("#what .label")).to_have_count(3)
    few = len(set(asked))
    assert few < 9, asked
    page.locator("#wall li").last.scroll_into_view_if_needed()
    expect(page.locator("#wall li").last.locator(".frame.loaded")).to_be_visible()
    assert len(set(asked)) > few


@pytest.mark.skipif(not SCREENSHOTS, reason="writes pictures: set LOOKALIKE_SCREENSHOTS to a folder")
def test_screenshots_of_the_page(browser: Browser, url: str, cat: bytes) -> None:
    """`page-start.webp`, `page-light.webp`, `page-dark.webp` and `page-phone.webp`."""
    folder = Path(SCREENSHOTS or "")
    folder.mkdir(parents=True, exist_ok=True)
    picture = Path(SHOWN_PICTURE).read_bytes() if SHOWN_PICTURE else cat
    if not SHOWN_GALLERY:
        take_pictures(browser, url, picture, folder)
        return
    with serving(SHOWN_GALLERY, "--runtime", "auto") as service:
        take_pictures(browser, service.url, picture, folder)


def take_pictures(browser: Browser, url: str, picture: bytes, folder: Path) -> None:
    for name, viewport, scheme, scale in (
        ("start", DESKTOP, "light", 1), ("light", DESKTOP, "light", 1), ("dark", DESKTOP, "dark", 1),
        ("phone", PHONE, "light", 2),
    ):  # fmt: skip
        is_phone = viewport is PHONE
        with seen(
            browser,
            viewport=viewport,
            color_scheme=scheme,
            device_scale_factor=scale,
            has_touch=is_phone,
            is_mobile=is_phone,
        ) as sight:
            page = sight.page
            page.goto(url)
            expect(page.locator("#reach")).not_to_be_empty()
            if name != "start":
                for _ in range(2):  # the second time, nothing is read from the disk for the first time
                    page.set_input_files("#file", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": picture})
                    expect(page.locator("#wall .frame.loaded").first).to_be_visible()
                    expect(page.locator("#what .label").first).to_be_visible()
                    page.wait_for_load_state("networkidle")
                page.wait_for_timeout(600)
            shot = Image.open(io.BytesIO(page.screenshot()))
            shot.save(folder / f"page-{name}.webp", quality=90, method=6)
            sight.check()
