"""The report: whole, self-contained, readable, and true to the numbers, for any run that can be measured."""

from __future__ import annotations

import base64
import doctest
import io
import itertools
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.data import synthetic
from lookalike.errors import InputError
from lookalike.evaluation.classification import per_class_accuracy, summary
from lookalike.reports import classification
from lookalike.reports.classification import wilson, write_report

VOID = {"meta", "img", "br"}
HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "{{ 7 * 7 }} &amp; {% raw %}")


class Reader(HTMLParser):
    """What is in a page: every element with its attributes, the text, and whether all that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"circle", "line", "path", "rect"}, "HTML has no elements that close themselves, SVG has"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def words(self) -> str:
        return " ".join(text for tag, text in self.texts if tag != "style")

    @property
    def style(self) -> str:
        return " ".join(text for tag, text in self.texts if tag == "style")


def pictures(count: int, side: int = 32) -> np.ndarray:
    """The same eight drawn pictures over and over."""
    some = [synthetic.render(synthetic.CLASS_NAMES[n], np.random.default_rng(n), side) for n in range(8)]
    return np.stack([some[n % 8] for n in range(count)])


def history(epochs: int = 6, steps: int = 20) -> Iterator[dict[str, Any]]:
    for step in range(1, epochs * steps + 1):
        epoch, size = step / steps, 32 if step <= 60 else 64
        yield {"kind": "train", "step": step, "epoch": epoch, "loss": 5 / (1 + epoch), "lr": 0.1 / epoch, "size": size}
        if step % steps == 0:
            scores = {"top1": epoch / 20, "top5": epoch / 10, "nll": 4 / (1 + epoch)}
            yield {"kind": "eval", "step": step, "epoch": epoch, **scores}


RECEIPT = {
    "name": "first",
    "data": {"name": "animals", "fingerprint": "ab" * 32, "train": 5000, "val": 60, "skipped": 2, "remark": ""},
    "seed": 7,
    "seconds": 3725.0,
    "cpu_seconds": 7000.0,
    "device": "cpu",
    "hardware": {"cpu": "Some Processor", "cores": 2, "memory_gib": 16.0, "system": "Linux x86_64", "gpu": None},
    "versions": {"python": "3.12.1", "torch": "2.11"},
    "commit": "0123456789abcdef+dirty",
    "command": "lookalike train quickstart --name first",
    "date": "2025-03-01T12:30:05+00:00",
    "model": "resnet18",
    "parameters": 2_805_416,
    "epochs": 6,
    "steps": 120,
    "batch_size": 64,
    "processes": 1,
    "threads": 2,
}
HOW = {"split": "val", "crop": "single", "flip": False, "image_size": 32, "weights": "last"}


def inputs(
    images: int = 60,
    classes: int = 6,
    *,
    skill: float = 2.0,
    used: int | None = None,
    trained: bool = True,
    names: tuple[str, ...] | None = None,
    side: int = 32,
    flip: bool = False,
) -> dict[str, Any]:
    """What `write_report` takes, of a network that is right the more often the larger `skill` is."""
    rng = np.random.default_rng(3)
    labels = np.arange(images) % (used or classes)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += skill
    results = {**summary(logits, labels), **HOW, "flip": flip, "image_size": side}
    return {
        "title": "first",
        "recipe_yaml": "model:\n  name: resnet18\n" if trained else "",
        "receipt": {**RECEIPT, "results": results} if trained else {"results": results, "data": {"name": "animals"}},
        "history": list(history()) if trained else [],
        "logits": logits,
        "labels": labels,
        "images": pictures(images, side),
        "class_names": names or tuple(f"class {number}" for number in range(classes)),
        "remark": None,
    }


def written(folder: Path, given: dict[str, Any]) -> str:
    path = folder / "report.html"
    write_report(path, **given)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    assert path.stat().st_size < 2_000_000
    return path.read_text(encoding="utf-8")


CASES = {
    "a run": {},
    "a model that was only measured": {"trained": False},
    "two classes": {"classes": 2},
    "forty classes": {"classes": 40, "images": 200},
    "forty-one classes": {"classes": 41, "images": 200},
    "two hundred classes": {"classes": 200, "images": 1000},
    "many classes, few with images": {"classes": 200, "images": 50, "used": 1},
    "one image": {"images": 1, "classes": 2},
    "one image of many classes": {"images": 1, "classes": 300},
    "no mistakes": {"skill": 100.0},
    "only mistakes": {"skill": -100.0},
    "classes without images": {"used": 2},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_any_run_gives_a_page_that_is_whole_and_needs_nothing_else(case: dict[str, Any], tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs(**case)))
    assert page.elements[0] == ("html", {"lang": "en"})
    assert page.all("meta", name="viewport")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/jpeg;base64,", "data:")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "prefers-color-scheme: dark" in page.style
    assert "@media print" in page.style
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", page.words)
    assert not any(re.search(r"\bnan\b|\binf\b", value or "") for _, a in page.elements for value in a.values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_can_be_read_without_seeing_it(case: dict[str, Any], tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs(**case)))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level is skipped"
    assert all((image.get("alt") or "").strip() for image in page.all("img"))
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert written(tmp_path / "a", inputs(classes=8)) == written(tmp_path / "b", inputs(classes=8))


def test_the_numbers_at_the_top_are_those_of_the_receipt(tmp_path: Path) -> None:
    given = inputs(images=120)
    given["receipt"]["results"] |= {
        "top1": 0.65,
        "top5": 0.9876,
        "mean_class_accuracy": 0.5432,
        "nll": 1.23456,
        "ece": 0.0912,
        "ece_cross_fitted": 0.0234,
    }
    words = Reader(written(tmp_path, given)).words.replace("\u00a0", " ")
    for number in ("65.0 %", "78 of 120", "98.8 %", "54.3 %", "1.235 nats", "9.1 %", "2.3 % after temperature scaling"):
        assert number in words
    assert f"{math.log(6):.3f} when all classes are held equally likely" in words
    assert "56.1 to 72.9 %" in words, "the interval of 78 in 120"


def test_the_files_of_the_surest_mistakes_are_named(tmp_path: Path) -> None:
    given = inputs(skill=0.5)
    given["paths"] = [f"val/<b>{number} & co.jpg" for number in range(60)]
    words = Reader(written(tmp_path, given)).words
    wrong = given["logits"].argmax(1) != given["labels"]
    named = [path for path in given["paths"] if path in words]
    assert len(named) == min(24, int(wrong.sum()))
    assert {given["paths"].index(path) for path in named} <= set(np.flatnonzero(wrong).tolist())


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_a_top_5_of_few_classes_is_not_drawn(classes: int, shown: bool, tmp_path: Path) -> None:
    assert ("top-5: " in Reader(written(tmp_path, inputs(classes=classes))).words) == shown


def test_a_temperature_that_the_images_cannot_tell_is_not_shown(tmp_path: Path) -> None:
    words = Reader(written(tmp_path, inputs(images=60))).words
    assert "no temperature was fitted" in words
    assert "No temperature was fitted to these images: 60 images are too few, it takes 100." in words
    assert "after temperature scaling" not in words


@pytest.mark.parametrize(("flip", "words"), [(False, "no flip averaging"), (True, "averaged with the mirrored image")])
def test_how_it_was_measured_is_named(flip: bool, words: str, tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs(flip=flip)))
    for said in (words, "val split", "60 images", "32 × 32 pixels", "single crop", "weights: last"):
        assert any(tag == "li" and said in text for tag, text in page.texts), said


def test_where_it_came_from_is_told(tmp_path: Path) -> None:
    given = inputs() | {"remark": "A reduced copy: 3 of 200 classes."}
    words = Reader(written(tmp_path, given)).words
    for said in (
        "A reduced copy: 3 of 200 classes.",
        "1 h 2 min",
        "2 cores of Some Processor",
        "0123456789abcdef+dirty",
        "2025-03-01 12:30 UTC",
        "lookalike train quickstart --name first",
        "python 3.12.1, torch 2.11",
        "2,805,416",
        "Seed 7",
        "Left out, undecodable 2",
        "model: name: resnet18",
    ):
        assert said in words, said


def test_a_gpu_is_named_where_there_was_one(tmp_path: Path) -> None:
    given = inputs()
    given["receipt"] |= {"device": "cuda:0", "hardware": {**given["receipt"]["hardware"], "gpu": "Some Card"}}
    assert "Device Some Card" in Reader(written(tmp_path, given)).words


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    given = inputs(classes=3, names=HOSTILE) | {
        "title": HOSTILE[0],
        "remark": HOSTILE[1],
        "recipe_yaml": "\n".join(HOSTILE),
    }
    given["receipt"] |= {
        "command": HOSTILE[1],
        "model": HOSTILE[0],
        "data": {**given["receipt"]["data"], "name": HOSTILE[2]},
    }
    page = Reader(written(tmp_path, given))
    plain = Reader(written(tmp_path, inputs(classes=3) | {"remark": "x", "recipe_yaml": "x"}))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert ("h1", HOSTILE[0]) in page.texts
    assert all(("strong", name) in page.texts for name in HOSTILE), "names in the pairs"
    assert any(HOSTILE[1] in (image["alt"] or "") for image in page.all("img"))


def test_many_classes_with_hostile_names_are_listed_safely(tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs(100, 50, names=tuple(f"<b onclick=x>{n}" for n in range(50)))))
    assert not page.all("b", onclick="x")
    assert ("span", "<b onclick=x>49") in page.texts


def test_the_curves_are_those_that_were_logged(tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs()))
    titles = [text for tag, text in page.texts if tag == "h3"]
    assert titles[:4] == ["Accuracy", "Loss", "Learning rate", "Resolution"]
    ends = [text.replace("\u00a0", " ") for tag, text in page.texts if tag == "tspan"]
    assert ends == ["60 %", "30 %", "0.714", "0.571", "0.0167", "64 px"], "the last values, the upper line first"
    assert Reader(written(tmp_path, inputs() | {"history": []})).words.count("How it learned") == 0


def test_records_that_are_not_finite_or_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    bad = [
        {"kind": "train", "step": 121, "epoch": 6.05, "loss": math.nan, "lr": math.inf, "size": 64},
        {"kind": "note", "step": 121},
        {"kind": "eval", "step": 121, "epoch": 6.05, "top1": None},
    ]
    page = Reader(written(tmp_path, inputs() | {"history": [*history(), *bad]}))
    ends = [text.replace("\u00a0", " ") for tag, text in page.texts if tag == "tspan"]
    assert ends == ["60 %", "30 %", "0.714", "0.571", "0.0167", "64 px"]


def test_one_record_is_enough_for_a_curve(tmp_path: Path) -> None:
    first = [{"kind": "train", "step": 1, "epoch": 0.0, "loss": 0.0, "lr": 0.0, "size": 32}]
    page = Reader(written(tmp_path, inputs() | {"history": first}))
    assert [text for tag, text in page.texts if tag == "h3"][:3] == ["Loss", "Learning rate", "Resolution"]


def figure_mistakes(given: dict[str, Any]) -> list[tuple[int, float]]:
    """Every mistake as (row, confidence), the surest first, by loops."""
    found = []
    for row, (scores, label) in enumerate(zip(given["logits"].astype(float), given["labels"], strict=True)):
        shares = [math.exp(score) for score in scores]
        if shares.index(max(shares)) != label:
            found.append((row, max(shares) / sum(shares)))
    return sorted(found, key=lambda mistake: -mistake[1])


def test_the_surest_mistakes_are_shown_with_what_they_are_and_were_taken_for(tmp_path: Path) -> None:
    given = inputs(100, 10, skill=0.5)
    names, expected = given["class_names"], figure_mistakes(given)
    page = Reader(written(tmp_path, given))
    shown = page.all("img")[-24:]
    assert f"24 of {len(expected)} mistakes" in page.words
    for image, (row, confidence) in zip(shown, expected[:24], strict=True):
        truth, guess = names[given["labels"][row]], names[given["logits"][row].argmax()]
        assert image["alt"] == f"{truth}, taken for {guess} ({100 * confidence:.0f}\u00a0% sure)"
        source = image["src"] or ""
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))), int)
        assert decoded.shape == (32, 32, 3)
        assert np.abs(decoded - given["images"][row]).mean() < 8, "the picture of that row, as JPEG keeps it"


def test_confused_pairs_show_both_ways_and_how_often(tmp_path: Path) -> None:
    """Cats taken for dogs five times of ten, dogs for cats once of ten, owls never mistaken."""
    labels = np.repeat([0, 1, 2], 10)
    guesses = labels.copy()
    guesses[:5], guesses[10] = 1, 0
    logits = (3 * np.eye(3)[guesses]).astype(np.float32)
    given = inputs(30, 3) | {"logits": logits, "labels": labels, "class_names": ("cat", "dog", "owl")}
    given["receipt"]["results"] |= summary(logits, labels)
    page = Reader(written(tmp_path, given))
    after = page.words.partition("Taken for each other")[2].partition("Most confident mistakes")[0]
    assert after.endswith("cat taken for dog 5 of 10 dog taken for cat 1 of 10 ")
    assert "owl" not in after
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == 4 + 1 + 6, "four at most of each way, and all six mistakes"


def test_with_few_classes_each_has_a_bar_and_the_matrix_is_there(tmp_path: Path) -> None:
    given = inputs(120, 40, skill=3.0)
    page = Reader(written(tmp_path, given))
    assert "Confusion matrix" in page.words
    widths = [a["style"] for a in page.all("span", **{"class": "fill"})]
    shares = sorted(per_class_accuracy(given["logits"], given["labels"]), reverse=True)
    assert widths == [f"width:{100 * share:.1f}%" for share in shares]
    cells = [int(text) for tag, text in page.texts if tag == "td" and text.isdigit()]
    assert sum(cells) == 120, "every image is in one cell"
    assert [text for tag, text in page.texts if tag == "summary"] == ["Recipe"]


def test_with_many_classes_the_extremes_a_histogram_and_a_folded_list_are_there(tmp_path: Path) -> None:
    given = inputs(400, 41, skill=2.0)
    page = Reader(written(tmp_path, given))
    assert "Confusion matrix" not in page.words
    assert "How many of 41 classes have which accuracy" in page.words
    shares = np.sort(per_class_accuracy(given["logits"], given["labels"]))
    widths = [a["style"] for a in page.all("span", **{"class": "fill"})]
    assert widths == [f"width:{100 * share:.1f}%" for share in (*shares[::-1][:15], *shares[:15])]
    assert [text for tag, text in page.texts if tag == "summary"] == ["Every class, best first", "Recipe"]
    listed = page.words.partition("Every class, best first")[2].partition("Taken for each other")[0]
    assert sorted(re.findall(r"class \d+", listed)) == sorted(given["class_names"])


def test_classes_without_images_say_so(tmp_path: Path) -> None:
    page = Reader(written(tmp_path, inputs(classes=6, used=4)))
    assert page.words.count("no images here") == 2
    for used in (50, 3):
        page = Reader(written(tmp_path, inputs(100, 60, used=used)))
        assert f"{60 - used} classes have no images here" in page.words
        assert len(page.all("span", **{"class": "fill"})) == min(30, used), "bars are for those that have"


def test_a_network_that_shouts_is_called_too_sure_and_one_that_mumbles_is_not(tmp_path: Path) -> None:
    given = inputs(200, 6, skill=1.5)
    said = {}
    for factor in (10.0, 0.01):
        words = Reader(written(tmp_path, given | {"logits": given["logits"] * np.float32(factor)})).words
        said[factor] = "too sure of itself" in words, "less sure than it might be" in words
    assert said == {10.0: (True, False), 0.01: (False, True)}


def test_large_noisy_pictures_do_not_make_a_large_file(tmp_path: Path) -> None:
    given = inputs(1000, 200, skill=0.0)
    noise = np.random.default_rng(0).integers(0, 256, (10, 224, 224, 3), dtype=np.uint8)
    written(tmp_path, given | {"images": noise[np.arange(1000) % 10]})


def test_the_folder_is_made_and_an_older_report_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    write_report(path, **inputs())
    write_report(path, **inputs() | {"title": "second"})
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("inside", [".", "a-file/report.html"])
def test_a_place_that_cannot_be_written_is_named(inside: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("mine")
    home = tmp_path / "home"
    (home / "report.html").mkdir(parents=True)
    path = home / "report.html" if inside == "." else tmp_path / inside
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_report(path, **inputs())
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert [file.name for file in home.iterdir()] == ["report.html"], "nothing half-written is left"
    assert (tmp_path / "a-file").read_text() == "mine"


def test_what_cannot_be_measured_leaves_the_older_report(tmp_path: Path) -> None:
    before = written(tmp_path, inputs())
    with pytest.raises(InputError, match="labels must be"):
        write_report(tmp_path / "report.html", **inputs() | {"labels": np.full(60, 6)})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(classification)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_the_interval_holds_the_shares_that_could_have_given_what_was_seen(n: int) -> None:
    """Wilson's interval: the p whose own standard error reaches the share seen, found by trying every p."""
    for seen in {0, 1, n // 2, n}:
        near = [p for p in np.linspace(0, 1, 20001) if abs(seen / n - p) <= 1.96 * math.sqrt(p * (1 - p) / n) + 1e-12]
        assert wilson(seen / n, n) == pytest.approx((near[0], near[-1]), abs=1e-4)
