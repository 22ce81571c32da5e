"""The results page: written from receipts and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.reproduce import results_page, study
from lookalike.reproduce.results_page import (
    HEAD,
    commit,
    hardware,
    headline,
    page,
    read_receipts,
    retrieval_headline,
    table,
    whole_page,
    write_page,
)

TINY = study.load("tiny-imagenet")


def receipt(name: str, top1: float, **changes: Any) -> dict[str, Any]:
    made = {
        "name": name,
        "results": {"top1": top1, "top5": 0.71239},
        "data": {"name": "tiny-imagenet", "remark": ""},
        "seed": 0,
        "threads": 2,
        "processes": 1,
        "seconds": 930.0,
        "cpu_seconds": 1800.0,
        "epochs": 8,
        "parameters": 11_271_432,
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpu": None},
        "commit": "0e35fb886ed500a240fd3b74294a1d5d4a02bb9e",
        "command": "lookalike reproduce tiny-imagenet",
        "date": "2026-11-24T20:30:08+00:00",
    }
    return {**made, **changes}


def all_of(budget: str, top1: float = 0.5) -> dict[str, dict[str, Any]]:
    return {p.name: receipt(p.name, top1) for p in study.plan(TINY, budget)}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_of(text: str, network: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("|") and f"| {network} |" in line]
    return cells(line)


def test_a_row_is_the_receipt_beside_the_published_number() -> None:
    name = "tiny_imagenet-30m-resnet18"
    text = page("tiny-imagenet", {name: receipt(name, 0.51234)})
    assert row_of(text, "ResNet-18") == [
        "2", "ResNet-18", "44.27", "**51.23**", "71.24", "15.5", "30.0", "8", "11.3 M",
    ]  # fmt: skip
    (below,) = [cells(line) for line in text.splitlines() if line.startswith(f"| [{name}]")]
    assert below == [
        f"[{name}](receipts/{name}.json)", "2 cores of AMD EPYC", "2026-11-24", "0", "0e35fb886",
        "`lookalike reproduce tiny-imagenet`",
    ]  # fmt: skip


@pytest.mark.parametrize("right", [-1, 0, 1])
def test_bold_is_above_the_published_number_and_not_at_it(right: int) -> None:
    for p in study.plan(TINY, "30m"):
        assert p.row.published is not None
        images = round(100 * p.row.published) + right  # of the 10,000, recognised
        shown = f"{images / 100:.2f}"
        ours = row_of(page("tiny-imagenet", {p.name: receipt(p.name, images / 10_000)}), p.row.network)[3]
        assert ours == (f"**{shown}**" if right > 0 else shown)


def test_without_a_published_number_nothing_is_bold() -> None:
    planned = study.plan(study.load("demo"), "demo")
    lines = table(planned, {p.name: receipt(p.name, 0.99) for p in planned})
    assert len(lines) == 2 + len(planned)
    assert "**" not in "".join(lines)
    assert all(cells(line)[2] == "" for line in lines[2:])


def test_a_line_has_as_many_cells_as_the_head() -> None:
    text = page("tiny-imagenet", all_of("30m"))
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for block in tables:
        assert len({len(cells(line)) for line in block.splitlines()}) == 1
        assert len(block.splitlines()) == 2 + len(TINY.rows)


def test_only_what_has_a_receipt_is_shown() -> None:
    some = {name: each for name, each in all_of("30m").items() if name.endswith(("resnet18", "weave"))}
    text = page("tiny-imagenet", some)
    assert "| ResNet-18 |" in text
    assert "Shallow CNN" not in text
    assert "### Budget 30m" in text
    assert "### Budget 2h" not in text


def test_budgets_stand_in_order_each_with_its_own_numbers() -> None:
    text = page("tiny-imagenet", {**all_of("full", 0.6), **all_of("30m", 0.4)})
    first, second = text.index("### Budget 30m: "), text.index("### Budget full: ")
    assert first < second
    assert "40.00" in text[first:second]
    assert "60.00" not in text[first:second]
    assert "60.00" in text[second:]


def test_without_receipts_there_are_no_numbers() -> None:
    text = page("tiny-imagenet", {})
    assert text.startswith(HEAD)
    assert TINY.title in text
    assert "|" not in text


def test_receipts_of_other_runs_are_not_taken_for_ours() -> None:
    assert "|" not in page("tiny-imagenet", {"mine": receipt("mine", 0.9), "demo-resnet18": receipt("x", 0.9)})


def test_a_remark_about_the_data_is_said_once() -> None:
    remark = "A reduced copy: 20 classes."
    some = all_of("30m")
    for each in [*some.values()][1:]:
        each["data"]["remark"] = remark
    assert page("tiny-imagenet", some).count(remark) == 1


@pytest.mark.parametrize(
    ("threads", "processes", "gpu", "words"),
    [
        (2, 1, None, "2 cores of AMD EPYC"),
        (1, 2, None, "2 cores of AMD EPYC"),
        (1, 1, None, "1 of 2 cores of AMD EPYC"),
        (1, 1, "NVIDIA H100", "NVIDIA H100"),
    ],
)
def test_hardware_is_what_the_run_computed_on(threads: int, processes: int, gpu: str | None, words: str) -> None:
    machine = {"cpu": "AMD EPYC", "cores": 2, "gpu": gpu}
    assert hardware(receipt("x", 0.5, hardware=machine, threads=threads, processes=processes)) == words


def test_the_headline_is_the_best_run_of_each_network() -> None:
    some = {**all_of("30m", 0.45), **all_of("full", 0.6)}
    del some["tiny_imagenet-full-weave"]
    lines = headline("tiny-imagenet", some).splitlines()
    assert len(lines) == 2 + len(TINY.rows)
    assert cells(lines[4]) == ["2", "ResNet-18", "44.27", "60.00", "16", "2 cores of AMD EPYC, 2026-11-24"]
    assert cells(lines[3])[3] == "45.00"
    assert len(headline("tiny-imagenet", {}).splitlines()) == 2


def test_a_run_on_cars_is_shown_by_each_kind_of_its_vectors() -> None:
    def recalls(at_1: float) -> dict[str, float]:
        numbers = {f"recall_at_{k}": at_1 + 0.01 * k for k in (1, 2, 4, 8)}
        return {**numbers, "threshold_recall_at_1": 0.1, "map_at_r": 0.05}

    classifier = {**recalls(0.4), "view": "features", "views": {"softmax": recalls(0.2)}}
    embedding = {**recalls(0.6), "view": "embedding", "views": {"features": recalls(0.5)}}
    some = {
        name: receipt(name, 0, results=its, loss="x")
        for name, its in (("cars196-cubs_resnet_2_softmax", classifier), ("cars196-cubs_resnet_2", embedding))
    }
    lines = [cells(line) for line in retrieval_headline("cars196", some).splitlines()[2:]]
    assert [line[1:5] for line in lines] == [
        ["CUBS-ResNet-2, classifier", "features", "41.00", "48.00"],
        ["CUBS-ResNet-2, classifier", "softmax", "21.00", "28.00"],
        ["CUBS-ResNet-2, proxy anchor", "embedding", "61.00", "68.00"],
        ["CUBS-ResNet-2, proxy anchor", "features", "51.00", "58.00"],
    ]
    assert page("cars196", some).count("| x | ") == 4


@pytest.mark.parametrize(
    ("given", "shown"), [("unknown", "unknown"), ("a" * 40, "a" * 9), ("b" * 40 + "+dirty", "b" * 9 + "+dirty")]
)
def test_the_commit_is_short_and_says_when_it_is_not_all(given: str, shown: str) -> None:
    assert commit({"commit": given}) == shown


def test_the_page_is_written_from_the_folder_beside_it(tmp_path: Path) -> None:
    receipts = all_of("30m")
    (tmp_path / "receipts").mkdir()
    for name, each in receipts.items():
        (tmp_path / "receipts" / f"{name}.json").write_text(json.dumps(each))
    path = tmp_path / "results.md"
    path.write_text("typed by hand: 99.99 %")
    write_page(path)
    assert path.read_text() == page("tiny-imagenet", receipts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["receipts", "results.md"]


@pytest.mark.parametrize("content", ["{", "", "[]", "7", "{}"])
def test_a_receipt_that_is_none_is_named_and_the_page_stays(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text("as it was")
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "bad.json").write_text(content)
    with pytest.raises(InputError, match=r"bad\.json"):
        write_page(path)
    assert path.read_text() == "as it was"


def test_few_images_per_class_have_a_part_of_their_own() -> None:
    one = {"set": "ants", "classes": 2, "images": 5, "draw": 0, "tests": 120, "cpu_seconds": 1.4, "method": "fit"}
    rows = [
        {**one, "top1": 0.733},
        {**one, "top1": 0.725, "method": "sklearn"},
        {**one, "top1": 0.81, "images": 20},
        {**one, "top1": 0.753, "draw": 1},
    ]
    about = {"model": "weave", "model_data": "tiny-imagenet", "image_size": 64}
    text = whole_page({"few_images-default": receipt("few_images-default", 0.0, results={"rows": rows}, **about)})
    assert "| set | classes | images per class | `fit` | scikit-learn |" in text
    assert "| ants | 2 | 5 | **73.3** (1 s) | 72.5 (1 s) |" in text
    assert "| ants | 2 | 20 | **81.0** (1 s) |  |" in text
    assert "The mean of 2 draws" in text
    assert "| ants | 2 | 5 | **74.3** (1 s) |" in text
    assert "receipts/few_images-default.json" in text


def test_no_folder_is_no_receipts(tmp_path: Path) -> None:
    assert read_receipts(tmp_path / "nowhere") == {}
    assert results_page.page("demo", {}).startswith(HEAD)
