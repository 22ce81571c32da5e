"""The page in Chromium: drop, paste and choose images, follow hits, filter, add and remove items; and `/docs`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from browsing import Sight, ask, file_of, transfer
from PIL import Image
from serve_client import encoded
from serve_process import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
from playwright.sync_api import expect

pytest_plugins = ("page_fixtures",)


@pytest.fixture(scope="module")
def url(gallery_of: Callable[[Path], Path], calibrated_model: Path, browser: object) -> Iterator[str]:
    """A service on the twelve pictures: a process of its own, open to who is on this machine."""
    with serving(gallery_of(calibrated_model), "--names") as service:
        yield service.url


@pytest.fixture(scope="module")
def cat(photos: Path) -> bytes:
    """The pixels of a picture that is in the gallery, in a file that is not."""
    file = io.BytesIO()
    with Image.open(photos / "cat" / "1.png") as image:
        image.save(file, "PNG", compress_level=1)
    assert file.getvalue() != (photos / "cat" / "1.png").read_bytes()
    return file.getvalue()


def labels(page: Page) -> list[str]:
    return page.locator("#wall li:not([hidden]) .label").all_text_contents()


def scores(page: Page) -> list[float]:
    return [
        float(text.replace("−", "-").split()[-1])
        for text in page.locator("#wall li:not([hidden]) .score").all_text_contents()
    ]


def hits(url: str, query: str, data: bytes | None = None) -> list[dict[str, object]]:
    headers = {"Content-Type": "image/png"} if data else {}
    found: list[dict[str, object]] = httpx.post(f"{url}v1/search?k=100&{query}", content=data, headers=headers).json()[
        "hits"
    ]
    return found


def test_the_start_page_describes_the_service(page: Page, url: str) -> None:
    answer = page.goto(url)
    assert answer is not None
    policy = answer.header_value("content-security-policy") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    expect(page.locator("#reach")).to_have_text("The model knows 3 classes. The gallery has 12 images.")
    expect(page.locator("#model")).not_to_be_empty()
    expect(page.locator("#asked")).to_be_hidden()
    expect(page).to_have_title("Lookalike")


def test_a_chosen_image_is_classified_and_searched(page: Page, url: str, cat: bytes) -> None:
    ask(page, url, cat)
    expect(page.locator("#image img")).to_be_visible()
    expect(page.locator("#subtitle")).to_have_text(f"photo.png · {size_of(cat)} · 64 × 64")
    told = httpx.post(f"{url}v1/predict", content=cat, headers={"Content-Type": "image/png"}).json()["predictions"][0]
    expect(page.locator("#what .label")).to_have_text([one["label"] for one in told["classes"]])
    expect(page.locator("#what .number").first).to_have_text(f"{100 * told['classes'][0]['probability']:.0f}\u00a0%")
    expect(page.locator("#what .verdict")).to_have_count(0)
    expected = hits(url, "threshold=0.9", cat)
    assert 1 < len(expected) < 12, "the threshold of the small model no longer parts its pictures"
    assert labels(page) == [hit["label"] for hit in expected]
    assert scores(page) == pytest.approx([hit["score"] for hit in expected], abs=0.006)
    expect(page.locator("#status strong")).to_have_text(f"{len(expected)} look-alikes")
    expect(page.locator("#status")).to_contain_text(re.compile(r"among 12 images (< 1|\d+)\s(ms|s), exact search"))
    expect(page.locator("#live")).to_contain_text(
        re.compile(r"Prediction: \w+, .*look-alikes, most similar: cat, 1.00\.")
    )
    expect(page.locator("#same")).to_be_hidden()
    expect(page.locator("#wall .frame.loaded")).to_have_count(len(expected))


def size_of(data: bytes) -> str:
    return f"{max(1, round(len(data) / 1000))}\u00a0kB"


def test_an_image_can_be_dropped_anywhere(page: Page, url: str, cat: bytes) -> None:
    page.goto(url)
    data = transfer(page, cat, "dropped.png")
    page.dispatch_event("footer", "dragenter", {"dataTransfer": data})
    expect(page.locator("#overlay")).to_be_visible()
    page.dispatch_event("footer", "dragover", {"dataTransfer": data})
    page.dispatch_event("footer", "drop", {"dataTransfer": data})
    expect(page.locator("#overlay")).to_be_hidden()
    expect(page.locator("#subtitle")).to_contain_text("dropped.png")
    expect(page.locator("#wall li").first).to_contain_text("cat")


def test_an_image_can_be_pasted(page: Page, url: str, cat: bytes) -> None:
    page.goto(url)
    paste = "(data) => document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))"
    page.evaluate(paste, transfer(page, cat, "pasted.png"))
    expect(page.locator("#subtitle")).to_contain_text("pasted.png")
    expect(page.locator("#wall li").first).to_contain_text("cat")


def test_dropping_or_pasting_something_else_shows_an_error(page: Page, url: str) -> None:
    page.goto(url)
    page.evaluate("""() => {
      const data = new DataTransfer();
      data.setData("text/uri-list", "https://example.org/cat.jpg");
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }""")
    expect(page.get_by_role("alert")).to_contain_text("This is a link")
    page.keyboard.press("Escape")
    expect(page.locator("#trouble")).to_be_hidden()
    page.evaluate(
        "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer(), bubbles: true }))"
    )
    expect(page.get_by_role("alert")).to_contain_text("There is no image on the clipboard.")


def test_click_through_and_back(page: Page, url: str, cat: bytes) -> None:
    ask(page, url, cat)
    first = labels(page), scores(page)
    second = page.locator("#wall li a").nth(1)
    id = second.get_attribute("data-id")
    second.click()
    expect(page.locator("#subtitle")).to_have_text(f"Item {id} in the gallery")
    assert urlsplit(page.url).query == f"id={id}"
    item = httpx.get(f"{url}v1/items/{id}").json()
    expect(page.locator("#title")).to_have_text(item["label"])
    expect(page.locator("#facts")).to_contain_text(item["name"])
    expect(page).to_have_title(f"{item['label']} · Lookalike")
    expect(page.locator("#what .label")).to_have_count(3)
    expected = hits(url, f"id={id}&threshold=0.9")
    expect(page.locator("#wall li:not([hidden])")).to_have_count(len(expected))
    assert labels(page) == [hit["label"] for hit in expected]
    page.go_back()
    expect(page.locator("#title")).to_have_text("Your image")
    expect(page.locator("#image.loaded img")).to_be_visible()
    expect(page.locator("#wall li:not([hidden])")).to_have_count(len(first[0]))
    assert (labels(page), scores(page)) == first
    page.go_back()
    expect(page.locator("#start")).to_be_visible()
    page.go_forward()
    page.go_forward()
    expect(page.locator("#subtitle")).to_have_text(f"Item {id} in the gallery")


def test_the_address_holds_the_search(page: Page, url: str) -> None:
    page.goto(f"{url}?id=3&label=dog&label=emu&threshold=none&k=96")
    expect(page.locator("#wall li")).to_have_count(8)
    assert set(labels(page)) == {"dog", "emu"}
    expect(page.locator("#chips li")).to_have_text(["dog", "emu"])
    expect(page.locator("#threshold-value")).to_have_text("any")
    expect(page.locator("#many")).to_have_value("96")
    page.reload()
    expect(page.locator("#wall li")).to_have_count(8)
    page.locator("#home").click()
    expect(page.locator("#start")).to_be_visible()
    assert urlsplit(page.url).query == ""


def test_labels_can_be_searched_selected_and_removed(page: Page, url: str, cat: bytes) -> None:
    ask(page, url, cat)
    page.locator("#threshold").fill("0")
    expect(page.locator("#wall li:not([hidden])")).to_have_count(12)
    button = page.get_by_role("button", name="All labels", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("searchbox", name="Find a label")).to_be_focused()
    expect(page.locator("#labels-list label")).to_have_count(3)
    page.keyboard.type("DÓ")  # neither case nor accents count
    expect(page.locator("#labels-list label")).to_have_text(["dog4"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator("#wall li")).to_have_count(4)
    page.locator("#labels-search").fill("em")
    page.get_by_role("checkbox", name="emu").check()
    expect(page.locator("#wall li")).to_have_count(8)
    assert set(labels(page)) == {"dog", "emu"}
    assert parse_qs(urlsplit(page.url).query)["label"] == ["dog", "emu"]
    page.keyboard.press("Escape")
    expect(page.locator("#labels-panel")).to_be_hidden()
    expect(page.locator("#labels-button")).to_be_focused()
    expect(page.locator("#labels-button")).to_have_text("2 labels")
    page.get_by_role("button", name="Remove the filter dog").click()
    expect(page.locator("#wall li")).to_have_count(4)
    assert set(labels(page)) == {"emu"}


def test_the_threshold_hides_at_once_and_is_lowered_where_nothing_is_left(page: Page, url: str, cat: bytes) -> None:
    ask(page, url, cat)
    everything = hits(url, "threshold=none", cat)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/search" in request.url else None)
    expect(page.locator("#threshold-value")).to_have_text("0.90, calibrated")
    expect(page.locator("#mark")).to_be_visible()
    expect(page.locator("#threshold-why")).to_contain_text("The mark at 0.90 is calibrated on 12 labelled")
    least = 0.5
    page.locator("#threshold").fill(str(least))
    expect(page.locator("#wall li:not([hidden])")).to_have_count(sum(hit["score"] >= least for hit in everything))
    assert parse_qs(urlsplit(page.url).query)["threshold"] == ["0.5"]
    page.get_by_role("button", name="Use the calibrated value").click()
    expect(page.locator("#threshold-value")).to_have_text("0.90, calibrated")
    assert urlsplit(page.url).query == ""
    page.goto(f"{url}?id=1&threshold=1")
    expect(page.locator("#nothing")).to_contain_text(
        re.compile(r"No image reaches a similarity of 1.00. The most similar one has 0\.\d\d\.")
    )
    page.locator("#nothing-action").click()
    expect(page.locator("#wall li:not([hidden])")).to_have_count(11)
    expect(page.locator("#nothing")).to_be_hidden()
    assert len(asked) == 1, "the slider has asked the server"


def test_the_number_of_hits_can_be_changed(page: Page, url: str) -> None:
    page.goto(f"{url}?id=1&threshold=none&k=5")
    expect(page.locator("#wall li")).to_have_count(5)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#wall li")).to_have_count(11)
    expect(page.locator("#many")).to_have_value("12")
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    page.locator("#many").select_option("48")
    assert parse_qs(urlsplit(page.url).query)["k"] == ["48"]


def test_arrow_keys_move_between_hits(page: Page, url: str) -> None:
    page.goto(f"{url}?id=1&threshold=none")
    tiles = page.locator("#wall a")
    expect(tiles).to_have_count(11)
    tops = page.evaluate("[...document.querySelectorAll('#wall li')].map((tile) => tile.offsetTop)")
    columns = tops.count(tops[0])
    tiles.first.focus()
    for key, place in (
        ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("ArrowUp", 0),
        ("End", 10), ("ArrowRight", 10), ("Home", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(tiles.nth(place)).to_be_focused()
    assert page.evaluate("[...document.querySelectorAll('#wall a')].filter((one) => one.tabIndex === 0).length") == 1
    page.keyboard.press("ArrowRight")
    id = tiles.nth(1).get_attribute("data-id")
    page.keyboard.press("Enter")
    expect(page.locator("#subtitle")).to_have_text(f"Item {id} in the gallery")
    expect(page.locator("#title")).to_be_focused()


def test_an_image_is_added_found_and_removed(page: Page, url: str) -> None:
    new = encoded(77, "PNG")
    ask(page, f"{url}?threshold=none", new)
    page.get_by_text("Add to the gallery", exact=True).click()
    page.get_by_role("combobox", name="Label of the new item").fill("gnu")
    page.keyboard.press("Enter")
    done = page.locator("#done")
    expect(done).to_contain_text("Added as item 13, gnu.")
    expect(page.locator("#status")).to_contain_text("among 13 images")
    expect(page.locator("#same")).to_contain_text("This file is already in the gallery: ")
    expect(page.locator("#wall li")).to_have_count(12)
    assert "gnu" not in labels(page)
    done.get_by_role("link").click()
    expect(page.locator("#title")).to_have_text("gnu")
    expect(page.locator("#wall li")).to_have_count(12)
    page.get_by_role("button", name="Remove from the gallery").click()
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#sure")).to_be_hidden()
    assert httpx.get(f"{url}v1/items/13").status_code == 200
    page.get_by_role("button", name="Remove from the gallery").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(done).to_have_text("Removed from the gallery.")
    assert httpx.get(f"{url}v1/items/13").status_code == 404
    page.go_back()
    expect(page.locator("#wall li")).to_have_count(12)
    expect(page.locator("#same")).to_be_hidden()
    assert "gnu" not in labels(page)


def test_a_file_in_the_gallery_is_named_and_not_added_again(page: Page, url: str, photos: Path) -> None:
    ask(page, f"{url}?threshold=none", (photos / "cat" / "1.png").read_bytes())
    expect(page.locator("#wall li")).to_have_count(11)
    expect(page.locator("#same")).to_have_text("This file is already in the gallery: 1.png.")
    page.get_by_text("Add to the gallery", exact=True).click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#done")).to_have_text("This file was in the gallery already, as item 2, cat.")
    assert httpx.get(f"{url}v1/about").json()["gallery"]["items"] == 12


def test_an_image_that_the_browser_cannot_show_is_still_searched(page: Page, url: str) -> None:
    page.goto(url)
    page.set_input_files("#file", file_of(encoded(5, "TIFF"), "scan.tif", "image/tiff"))
    expect(page.locator("#image")).to_have_class("missing")
    expect(page.locator("#wall li")).to_have_count(12)


def test_ctrl_click_is_left_to_the_browser(sight: Sight, url: str) -> None:
    page = sight.page
    page.goto(f"{url}?id=1&threshold=none")
    link = page.locator("#wall a").first
    with page.context.expect_page() as opened:
        link.click(modifiers=["ControlOrMeta"])
    expect(opened.value.locator("#subtitle")).to_have_text(f"Item {link.get_attribute('data-id')} in the gallery")
    assert urlsplit(page.url).query == "id=1&threshold=none"


def test_docs_lists_every_route_and_sends_requests(sight: Sight, url: str, cat: bytes) -> None:
    page, sight.may_be_refused = sight.page, True
    page.goto(f"{url}docs")
    paths = httpx.get(f"{url}openapi.json").json()["paths"]
    expect(page.locator("article")).to_have_count(sum(len(methods) for methods in paths.values()))
    search = page.locator("#post-v1-search")
    search.locator("summary").first.click()
    search.locator("#post-v1-search-k").fill("2")
    search.locator("#post-v1-search-image").set_input_files(file_of(cat))
    search.get_by_role("button", name="Send request").click()
    expect(search.get_by_role("status")).to_contain_text("Status 200")
    expect(search.get_by_role("status")).to_contain_text('"hits"')
    search.locator("#post-v1-search-k").fill("0")
    search.get_by_role("button", name="Send request").click()
    expect(search.get_by_role("status")).to_contain_text("Status 422")
