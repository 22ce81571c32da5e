"""The report of retrieval: whole, self-contained, readable, true to the embeddings; its parts against plain loops."""

from __future__ import annotations

import doctest
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_classification_report import HOSTILE, RECEIPT, Reader, pictures

from lookalike import errors
from lookalike.errors import InputError
from lookalike.evaluation import pair_similarity
from lookalike.evaluation.pair_similarity import PairSimilarities, threshold
from lookalike.evaluation.pair_similarity import similarities as similarities_of
from lookalike.evaluation.retrieval import retrieval_summary
from lookalike.reports import html, retrieval
from lookalike.reports.retrieval import write_retrieval_report
from lookalike.reports.retrieval_examples import DEPTH, RetrievalFindings, chosen, layout

CARD = {
    "protocol": "half-zero-shot",
    "about": "the first half of the classes trains, the rest is tested",
    "rule": "every test image against all other test images, itself left out",
    "data": "animals",
    "train": {"classes": 6, "images": 5000, "classes_of_one_image": 1},
    "test": {"classes": 6, "images": 48, "classes_of_one_image": 0},
    "complete": False,
    "crop": "boxes",
    "resolution": 32,
    "dim": 16,
    "excluded": {"self": True, "queries_without_positive": 2, "unlabelled": 3},
    "near_duplicates": 4,
    "remark": "cropped half",
}


def vectors(labels: np.ndarray, skill: float, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Noise around a direction for each class; the larger `skill`, the less noise there is beside it."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(int(labels.max()) + 1, dim))
    found = rng.normal(size=(len(labels), dim)) + skill * centres[labels]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def history(classifier: bool = False) -> Iterator[dict[str, Any]]:
    for step in range(1, 61):
        epoch = step / 10
        yield {"kind": "train", "step": step, "epoch": epoch, "loss": 5 / (1 + epoch), "lr": 0.1 / epoch, "size": 32}
        if step % 10 == 0:
            scores = {f"recall_at_{k}": epoch / 20 + k / 20 for k in (1, 2, 4, 8)}
            if classifier:
                scores |= {"softmax_recall_at_1": epoch / 30, "softmax_threshold_recall_at_1": 0.3 - epoch / 20}
            yield {"kind": "eval", "step": step, "epoch": epoch, **scores}


def inputs(
    images: int = 48,
    classes: int = 6,
    *,
    skill: float = 0.8,
    labels: np.ndarray | None = None,
    classifier: bool = False,
    trained: bool = True,
    names: tuple[str, ...] | None = None,
    side: int = 16,
) -> dict[str, Any]:
    """What `write_retrieval_report` takes."""
    labels = np.arange(images) % classes if labels is None else labels
    embeddings = vectors(labels, skill)
    results = {
        **retrieval_summary(embeddings, labels, draws=50),
        "view": "features" if classifier else "embedding",
        "flip": False,
    }
    other = {key: value / 2 for key, value in results.items() if "recall_at" in key}
    results["views"] = {"softmax" if classifier else "features": other}
    data = {"name": "animals", "fingerprint": "ab" * 32, "train": 5000, "test": len(labels)}
    return {
        "title": "first",
        "recipe_yaml": "model:\n  name: resnet18\n" if trained else "",
        "receipt": {**RECEIPT, "data": data, "results": results} if trained else {"results": results},
        "history": list(history(classifier)) if trained else [],
        "embeddings": embeddings,
        "labels": labels,
        "images": pictures(len(labels), side),
        "class_names": names or tuple(f"class {number}" for number in range(int(labels.max()) + 1)),
        "card": CARD,
        "remark": None,
    }


def written(folder: Path, given: dict[str, Any]) -> str:
    path = folder / "report.html"
    write_retrieval_report(path, **given)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


CASES: dict[str, dict[str, Any]] = {
    "a run": {},
    "a classifier": {"classifier": True},
    "a model that was only measured": {"trained": False},
    "two images of one class": {"labels": np.zeros(2, np.int64)},
    "one class": {"labels": np.zeros(12, np.int64)},
    "one pair among singles": {"labels": np.array([0, 0, 1, 2, 3])},
    "no mistakes": {"skill": 100.0},
    "many classes": {"images": 150, "classes": 50},
    "classes without images": {"labels": np.repeat([1, 5], 12)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_any_result_gives_a_page_that_is_whole_and_readable_and_needs_nothing_else(
    case: dict[str, Any], tmp_path: Path
) -> None:
    text = written(tmp_path, inputs(**case))
    assert len(text) < 2_000_000
    found = Reader(text)
    assert found.elements[0] == ("html", {"lang": "en"})
    assert found.all("meta", name="viewport")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:image/jpeg").startswith("data:image/jpeg"), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
        assert not any(re.search(r"\bnan\b|\binf\b", value or "") for value in attributes.values())
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", found.words)
    assert "url(" not in found.style
    assert "@import" not in found.style
    assert "@media print" in found.style
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level is skipped"
    assert all((image.get("alt") or "").strip() for image in found.all("img"))
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in found.all("svg"))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a} <= set(ids)
    assert all(header.get("scope") in {"row", "col"} for header in found.all("th"))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert written(tmp_path / "a", inputs()) == written(tmp_path / "b", inputs())


def test_the_numbers_are_those_of_the_receipt(tmp_path: Path) -> None:
    given = inputs()
    given["receipt"]["results"] |= {
        "recall_at_1": 0.625,
        "recall_at_8": 0.9876,
        "map_at_r": 0.2346,
        "nmi": 0.4567,
        "excluded": 2,
        "intervals": {"recall_at_1": [0.5, 0.75], "recall_at_8": [0.9, 0.99]},
        "without_duplicates": {"recall_at_1": 0.611},
    }
    words = Reader(written(tmp_path, given)).words.replace("\u00a0", " ")
    for said in (
        "Recall@1 62.5 % For 30 of 48 queries",
        "50.0 to 75.0 % (95 % interval)",
        "Recall@8 98.8 % 90.0 to 99.0 %",
        "MAP@R 23.5 %",
        "NMI 0.457",
        "2 without another image of the class not counted",
        f"In random order: {700 / 47:.1f} %",
        "4 pairs among the test images; Recall@1 is 61.1 %",
        "embedding, near-duplicates of a query left out 61.1 % – – – –",
    ):
        assert said in words, said


def test_only_recall_at_1_has_to_be_there(tmp_path: Path) -> None:
    given = inputs(trained=False) | {"card": {}}
    given["receipt"] = {"results": {"recall_at_1": 0.5}}
    words = Reader(written(tmp_path, given)).words
    assert "What was measured" not in words
    assert "interval" not in words
    with pytest.raises(InputError, match="holds no recall_at_1"):
        write_retrieval_report(tmp_path / "other.html", **given | {"receipt": {"results": {}}})
    assert not (tmp_path / "other.html").exists()


def test_the_protocol_is_told_in_words(tmp_path: Path) -> None:
    given = inputs()
    given["receipt"] |= {"start": {"model": "runs/tiny", "fingerprint": "x", "dataset": "tiny"}, "loss": "proxy_anchor"}
    words = Reader(written(tmp_path, given)).words
    for said in (
        "half-zero-shot: the first half of the classes trains, the rest is tested",
        "6 classes, 5,000 images, 1 class of a single image",
        "not the full set",
        "Every test image against all other test images, itself left out.",
        "each query, from what it finds; 2 queries without another image of the class; 3 images without a label",
        "cut to the boxes",
        "32 × 32 pixels",
        "16 numbers an image",
        "Started from runs/tiny, trained on tiny",
        "Loss proxy_anchor",
        "Test images 48",
    ):
        assert said in words, said
    given["receipt"]["start"] = None
    given["card"] = {**CARD, "near_duplicates": None, "complete": True, "crop": "whole"}
    words = Reader(written(tmp_path, given)).words
    for said in ("nobody looked for them", "as many classes and images as the full set has", "whole images"):
        assert said in words, said
    assert "Started from random weights" in words


def test_the_curves_are_those_that_were_logged(tmp_path: Path) -> None:
    for classifier in (False, True):
        found = Reader(written(tmp_path, inputs(classifier=classifier)))
        ends = [text.replace("\u00a0", " ") for tag, text in found.texts if tag == "tspan"]
        softmax = ["20 %", "0 %"] if classifier else []
        assert ends == ["70 %", "50 %", "40 %", "35 %", *softmax, "0.714", "0.0167", "32 px"]
    assert "How it learned" not in Reader(written(tmp_path, inputs() | {"history": []})).words


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    given = inputs(24, 3, names=HOSTILE) | {"title": HOSTILE[0], "remark": HOSTILE[1], "recipe_yaml": HOSTILE[2]}
    given["card"] = {**CARD, "protocol": HOSTILE[1], "about": HOSTILE[0], "remark": HOSTILE[2]}
    found = Reader(written(tmp_path, given))
    plain = Reader(written(tmp_path, inputs(24, 3) | {"remark": "x", "recipe_yaml": "x"}))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert ("h1", HOSTILE[0]) in found.texts
    assert any(HOSTILE[1] in (image["alt"] or "") for image in found.all("img"))
    assert any(tag == "title" and text == HOSTILE[2] for tag, text in found.texts), "on the map"


def test_the_wall_shows_what_each_query_found_and_marks_it_twice(tmp_path: Path) -> None:
    given = inputs(60, 5, skill=0.5)
    found = Reader(written(tmp_path, given))
    queries = [i["alt"] for i in found.all("img") if (i["alt"] or "").startswith("Query: ")]
    assert len(queries) == 12
    cosines = given["embeddings"] @ given["embeddings"].T
    np.fill_diagonal(cosines, -2)
    findings = RetrievalFindings(given["embeddings"], given["labels"], given["images"], given["class_names"])
    rows = findings.typical(6)
    failing = findings.failing(3, without=rows)
    rows = [*rows, *findings.best(3, without=[*rows, *failing]), *failing]
    expected = []
    for row in rows:
        nearest = sorted(range(60), key=lambda other: -cosines[row, other])[:DEPTH]
        expected += [given["labels"][other] == given["labels"][row] for other in nearest]
    items = [a for tag, a in found.elements if tag == "li" and a in ({}, {"class": "hit"})]
    shown = [i["alt"] or "" for i in found.all("img") if (i["alt"] or "").startswith(("Right: ", "Wrong: "))]
    assert [alt.startswith("Right") for alt in shown] == expected
    marks = [text for tag, text in found.texts if tag == "i" and text in "✓✗"][2:]
    assert [mark == "✓" for mark in marks] == expected
    assert sum(a == {"class": "hit"} for a in items) == sum(expected), "frames"


def test_similar_wrong_pairs_classes_and_thresholds_are_on_the_page(tmp_path: Path) -> None:
    given = inputs(120, 6)
    found = Reader(written(tmp_path, given))
    words = found.words.replace("\u00a0", " ")
    findings = RetrievalFindings(given["embeddings"], given["labels"], given["images"], given["class_names"])
    for pair in findings.wrong_pairs(12):
        assert f"{pair.one.name} {pair.other.name} cosine {pair.cosine:.3f}" in words
    widths = [a["style"] for a in found.all("span", **{"class": "fill"})]
    assert widths == [f"width:{100 * row.share:.1f}%" for _, row in findings.classes()[::-1] if row.share is not None]
    pairs = similarities_of(given["embeddings"], given["labels"])
    at = threshold(pairs, 0.01)
    assert at is not None
    assert f"1 % {at.cosine:.3f} {100 * at.found:.1f} %" in words
    assert "0.1 % too few pairs" in words, "6,000 pairs of different classes: a thousandth of them says nothing"


def test_without_another_class_no_threshold_and_no_pair_is_claimed(tmp_path: Path) -> None:
    words = Reader(written(tmp_path, inputs(**CASES["one class"]))).words
    assert words.count("too few pairs") == 2
    assert "no pair is wrong" in words


def test_embeddings_that_are_all_the_same_have_no_map(tmp_path: Path) -> None:
    same = np.repeat(np.eye(16, dtype=np.float32)[:1], 48, 0)
    found = Reader(written(tmp_path, inputs() | {"embeddings": same}))
    assert "too few different embeddings for a map" in found.words


def test_large_noisy_pictures_do_not_make_a_large_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    assert len(written(tmp_path, inputs() | {"images": noise[np.arange(48) % 8]})) < 4_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(48, 6)}, "do not fit 6 class names"),
        ({"labels": np.arange(47) % 6}, "do not fit"),
        ({"images": pictures(47, 16)}, "47 images do not fit"),
        ({"labels": np.arange(48), "class_names": ["x"] * 48}, "none of 48 queries"),
        ({"embeddings": np.full((48, 16), np.nan, np.float32)}, "not all finite"),
    ],
)
def test_what_cannot_be_reported_leaves_the_older_report(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("older")
    with pytest.raises(InputError, match=message):
        write_retrieval_report(tmp_path / "report.html", **inputs() | change)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["older"]


labels_of = st.lists(st.integers(0, 4), min_size=2, max_size=24).map(np.array)


@settings(max_examples=40, deadline=None)
@given(labels_of, st.integers(0, 1000))
def test_classes_best_and_failing_queries_and_wrong_pairs_are_as_by_loops(labels: np.ndarray, seed: int) -> None:
    count = np.bincount(labels, minlength=5)
    if count.max() < 2:
        return
    found = vectors(labels, 0.3, dim=6, seed=seed)
    cosines = found @ found.T
    np.fill_diagonal(cosines, -2)
    findings = RetrievalFindings(found, labels, np.zeros((len(labels), 2, 2, 3), np.uint8), "abcde")
    order = [
        sorted(set(range(len(labels))) - {row}, key=lambda o: -cosines[row, o])[:DEPTH] for row in range(len(labels))
    ]
    right = [sum(labels[o] == labels[row] for o in order[row]) for row in range(len(labels))]

    for label, row in findings.classes():
        own = np.flatnonzero(labels == label)
        assert row.images == len(own)
        if len(own) < 2:
            assert row.share is None
            continue
        firsts = Counter("abcde"[labels[order[one][0]]] for one in own)
        hits = firsts.pop("abcde"[label], 0)
        assert row.share == pytest.approx(hits / len(own))
        assert row.times == max(firsts.values(), default=0)
        assert (row.taken_for is None) == (not firsts)
        assert row.taken_for is None or firsts[row.taken_for] == row.times
    shares = [row.share for _, row in findings.classes() if row.share is not None]
    assert shares == sorted(shares, reverse=True)

    queries = [row for row in range(len(labels)) if count[labels[row]] > 1]
    assert sorted(findings.typical(len(labels))) == queries
    best = findings.best(5)
    assert len({labels[row] for row in best}) == len(best)
    assert not best or right[best[0]] == max(right[row] for row in queries)
    wrong = [row for row in queries if labels[order[row][0]] != labels[row]]
    failing = findings.failing(5)
    assert len(failing) == len({labels[row] for row in wrong})
    assert set(failing) <= set(wrong)
    assert not failing or right[failing[0]] == min(right[row] for row in wrong)
    assert not set(findings.failing(5, without=failing)) & set(failing)

    pairs = findings.wrong_pairs(3)
    different = labels[:, None] != labels[None]
    assert bool(pairs) == different.any()
    if pairs:
        assert pairs[0].cosine == pytest.approx(cosines[different].max(), abs=1e-6)
        assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)
        assert len({frozenset((pair.one.name, pair.other.name)) for pair in pairs}) == len(pairs)


def loops(found: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[float]]:
    """Cosines of pairs of one class, and of different ones."""
    same: list[float] = []
    different: list[float] = []
    for one, other in itertools.combinations(range(len(labels)), 2):
        (same if labels[one] == labels[other] else different).append(float(found[one] @ found[other]))
    return same, different


@settings(max_examples=30, deadline=None)
@given(labels_of)
def test_all_pairs_are_looked_at_where_they_are_few(labels: np.ndarray) -> None:
    found = vectors(labels, 0.5, dim=6)
    pairs = similarities_of(found, labels)
    same, different = loops(found, labels)
    assert (pairs.all_same, pairs.all_different) == (len(same), len(different))
    np.testing.assert_allclose(np.sort(pairs.same), np.sort(same), atol=1e-6)
    np.testing.assert_allclose(np.sort(pairs.different), np.sort(different), atol=1e-6)


def test_of_many_pairs_some_are_drawn_each_equally_likely() -> None:
    labels = np.repeat([3, 0, 7], [2, 6, 12])
    found = vectors(labels, 0.5, dim=6)
    every = loops(found, labels)
    draws = similarities_of(found, labels, most=60)
    assert len(draws.same) == 60, "of 82"
    assert draws.all_same == 82
    for kind, cosines in enumerate(every):
        times: Counter[int] = Counter()
        for seed in range(600):
            some = similarities_of(found, labels, most=60, seed=seed)
            looked = some.different if kind else some.same
            times.update(np.abs(np.subtract.outer(looked, np.array(cosines))).argmin(1).tolist())
            assert np.abs(np.subtract.outer(looked, np.array(cosines))).min(1).max() < 1e-6, "no other pair"
        expected = 600 * 60 / len(cosines)
        counts = np.array([times[place] for place in range(len(cosines))])
        assert np.abs(counts - expected).max() < 5.5 * math.sqrt(expected)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=300), st.sampled_from([0.01, 0.1, 0.5]))
def test_a_threshold_is_the_least_that_keeps_the_rate(cosines: list[int], rate: float) -> None:
    different = np.array(cosines, np.float32) / 20
    same = np.linspace(-1, 1, 41, dtype=np.float32)
    at = threshold(PairSimilarities(same, different, 41, len(different)), rate)
    assert (at is None) == (rate * len(different) < 10 - 1e-9)
    if at:
        assert (different > at.cosine).mean() <= rate + 1e-9
        lower = different[different < at.cosine]
        assert not len(lower) or (different > lower.max()).mean() > rate
        assert at.found == pytest.approx((same > at.cosine).mean())


def test_the_map_keeps_groups_together_and_is_the_same_each_time() -> None:
    labels = np.repeat(np.arange(4), 15)
    found = vectors(labels, 3.0)
    places = layout(found)
    assert places is not None
    assert np.abs(places).max() == 1
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.95
    again = layout(found)
    assert again is not None
    np.testing.assert_array_equal(places, again)
    assert layout(found[:9]) is None


def test_points_of_the_map_are_those_of_named_classes_first_and_others_drawn() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 5, 400, 545])
    rows = chosen(labels, [0, 1], most=100, each=20)
    assert np.bincount(labels[rows])[:2].tolist() == [20, 5]
    assert len(rows) == len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, chosen(labels, [0, 1], most=100, each=20, seed=1))
    assert len(chosen(labels, [0, 1], most=1000, each=20)) == 1000
    assert len(chosen(labels, [0, 1], most=10, each=20)) == 10


@pytest.mark.parametrize("module", [html, retrieval, pair_similarity, errors])
def test_the_examples_in_the_docstrings_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0
