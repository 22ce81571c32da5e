"""Retrieval metrics against a loop that does what their definitions say, and against pytorch-metric-learning."""

from __future__ import annotations

import doctest
import importlib.util
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.evaluation import knn, retrieval
from lookalike.evaluation.retrieval import (
    bootstrap,
    map_at_r,
    nmi,
    per_query,
    precision_at_1,
    r_precision,
    recall_at_k,
    relevant_in_top_k,
    retrieval_summary,
    threshold_recall_at_k,
)

KS = (1, 2, 5)


def naive(
    queries: list[list[float]],
    labels: list[int],
    gallery: list[list[float]] | None,
    gallery_labels: list[int] | None,
    groups: list[int] | None,
    gallery_groups: list[int] | None,
    threshold: float,
) -> tuple[int, dict[str, float]]:
    """Queries left out, and the means: one query at a time, one neighbour at a time."""
    others, their_labels = (queries, labels) if gallery is None else (gallery, gallery_labels or [])
    their_groups = groups if gallery is None else gallery_groups
    sums: dict[str, list[float]] = {}
    excluded = 0
    for i, query in enumerate(queries):
        allowed = [j for j in range(len(others)) if not (gallery is None and i == j)]
        if groups is not None and their_groups is not None:
            allowed = [j for j in allowed if groups[i] != their_groups[j]]
        cosine = {j: sum(a * b for a, b in zip(query, others[j], strict=True)) / len(query) for j in allowed}
        ranking = sorted(allowed, key=lambda j: (-cosine[j], j))
        r = sum(their_labels[j] == labels[i] for j in allowed)
        if r == 0:
            excluded += 1
            continue
        right = [their_labels[j] == labels[i] for j in ranking]
        one = {"precision_at_1": float(right[0]), "r_precision": sum(right[:r]) / r}
        one["map_at_r"] = sum(sum(right[: n + 1]) / (n + 1) for n in range(r) if right[n]) / r
        for k in KS:
            one[f"recall_at_{k}"] = float(any(right[:k]))
            one[f"relevant_in_top_{k}"] = sum(right[:k]) / r
            close = [hit and cosine[j] > threshold for hit, j in zip(right, ranking, strict=True)]
            one[f"threshold_recall_at_{k}"] = float(any(close[:k]))
        for name, value in one.items():
            sums.setdefault(name, []).append(value)
    return excluded, {name: sum(values) / len(values) for name, values in sums.items()}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Vectors of ±1 in four dimensions: sixteen at most, so that copies and equal cosines abound, all exact."""
    vector = st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)

    def side() -> tuple[list[list[float]], list[int], list[int]]:
        count = draw(st.integers(1, 14))
        numbers = st.lists(st.integers(0, 4), min_size=count, max_size=count)
        return draw(st.lists(vector, min_size=count, max_size=count)), draw(numbers), draw(numbers)

    vectors, labels, groups = side()
    case: dict[str, Any] = {
        "embeddings": vectors,
        "labels": labels,
        "threshold": draw(st.sampled_from([-0.5, 0.0, 0.75])),
    }
    grouped = draw(st.booleans())
    case["groups"] = groups if grouped else None
    gallery, gallery_labels, gallery_groups = side() if draw(st.booleans()) else (None, None, None)
    case |= {
        "gallery": gallery,
        "gallery_labels": gallery_labels,
        "gallery_groups": gallery_groups if grouped else None,
    }
    return case


@given(cases(), st.sampled_from([2, 3, 4096]), st.sampled_from([0, 1 << 20]))
def test_all_numbers_equal_the_naive_loop(case: dict[str, Any], tile: int, lists: int) -> None:
    expected = naive(*(case[name] for name in ("embeddings", "labels", "gallery", "gallery_labels", "groups")),
                     case["gallery_groups"], case["threshold"])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "TILE", tile)
        patch.setattr(knn, "SLICE", 2)
        patch.setattr(knn, "LISTS", lists)
        patch.setattr(knn, "ENTRIES", 8)
        if not expected[1]:
            with pytest.raises(InputError, match="has an image of its class in the gallery"):
                per_query(ks=KS, **case)
            return
        found = per_query(ks=KS, **case)
    assert found.excluded == expected[0]
    assert len(found.queries) == len(case["labels"]) - expected[0]
    assert {name: found.mean(name) for name in found.values} == pytest.approx(expected[1])


def spread(count: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors around a centre for each class, of which the sizes differ; the last class has one image."""
    generator = np.random.default_rng(seed)
    labels = np.minimum(generator.geometric(3 / classes, count), classes - 1) - 1
    labels[count // 2] = classes - 1
    centres = generator.normal(size=(classes, 24))
    return (centres[labels] + 1.3 * generator.normal(size=(count, 24))).astype(np.float32), labels


def test_the_functions_give_the_numbers_of_the_one_pass() -> None:
    vectors, labels = spread(300, 20)
    numbers = retrieval_summary(vectors, labels, draws=5)
    assert recall_at_k(vectors, labels) == {k: numbers[f"recall_at_{k}"] for k in (1, 2, 4, 8)}
    assert relevant_in_top_k(vectors, labels, (4,)) == {4: numbers["relevant_in_top_4"]}
    assert threshold_recall_at_k(vectors, labels, (4,)) == {4: numbers["threshold_recall_at_4"]}
    assert precision_at_1(vectors, labels) == numbers["precision_at_1"] == numbers["recall_at_1"]
    assert r_precision(vectors, labels) == numbers["r_precision"]
    assert map_at_r(vectors, labels) == numbers["map_at_r"]
    assert nmi(vectors, labels) == numbers["nmi"]
    assert 0 < numbers["map_at_r"] < numbers["r_precision"] < numbers["recall_at_8"] < 1


def test_it_equals_pytorch_metric_learning() -> None:
    pytest.importorskip("pytorch_metric_learning", reason="needs pytorch-metric-learning")
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    knn = None if importlib.util.find_spec("faiss") else CustomKNN(CosineSimilarity())
    calculator = AccuracyCalculator(include=names, knn_func=knn, device=torch.device("cpu"))
    vectors, labels = spread(500, 30)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ours = per_query(vectors, labels)
    assert ours.excluded == 1
    theirs = calculator.get_accuracy(units, labels)
    mine = {"precision_at_1": "precision_at_1", "r_precision": "r_precision", "mean_average_precision_at_r": "map_at_r"}
    assert {name: ours.mean(mine[name]) for name in names} == pytest.approx({name: theirs[name] for name in names})

    apart = calculator.get_accuracy(units[:200], labels[:200], units[200:], labels[200:])
    ours = per_query(vectors[:200], labels[:200], gallery=vectors[200:], gallery_labels=labels[200:])
    assert {name: ours.mean(mine[name]) for name in names} == pytest.approx({name: apart[name] for name in names})


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(retrieval)
    assert result.attempted >= 2
    assert result.failed == 0


def test_the_threshold_looks_at_the_scale_and_recall_does_not() -> None:
    vectors, labels = np.eye(4) + 0.3, [0, 0, 1, 1]  # cosines all equal, 0.49
    assert threshold_recall_at_k(vectors, labels, (3,)) == {3: 0.0}
    assert threshold_recall_at_k(vectors, labels, (3,), threshold=0.4) == recall_at_k(vectors, labels, (3,)) == {3: 1.0}


def test_copies_in_the_query_s_group_are_not_found() -> None:
    vectors = [[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.5, 0.5]]
    labels, groups = [0, 0, 1, 0], [0, 0, 1, 2]
    assert recall_at_k(vectors, labels, (1,)) == {1: pytest.approx(2 / 3)}
    assert recall_at_k(vectors, labels, (1,), groups=groups) == {1: 0.0}


def test_the_summary_is_json_and_counts() -> None:
    vectors = np.vstack([np.eye(4), np.eye(4)])
    numbers = json.loads(json.dumps(retrieval_summary(vectors, [0, 1, 2, 3, 0, 1, 2, 9], draws=50)))
    assert (numbers["queries"], numbers["excluded"], numbers["gallery"], numbers["dim"]) == (6, 2, 8, 4)
    assert numbers["recall_at_1"] == numbers["map_at_r"] == 1
    assert numbers["intervals"]["recall_at_1"] == [1, 1]
    assert set(numbers["intervals"]) == set(numbers) - {
        "queries", "excluded", "gallery", "dim", "threshold", "nmi", "intervals",
    }  # fmt: skip
    assert "nmi" not in retrieval_summary(vectors, [0, 1, 2, 3, 0, 1, 2, 9], draws=2, with_nmi=False)


def test_intervals_are_seeded_and_as_wide_as_theory_says() -> None:
    hits = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    interval = bootstrap({"a": hits, "b": 1 - hits}, seed=4)
    assert interval == bootstrap({"a": hits, "b": 1 - hits}, seed=4)
    assert interval != bootstrap({"a": hits, "b": 1 - hits}, seed=5)
    half = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert interval["a"] == pytest.approx([hits.mean() - half, hits.mean() + half], abs=half / 8)
    assert interval["b"] == pytest.approx([1 - interval["a"][1], 1 - interval["a"][0]])


def test_nmi_knows_the_extremes_and_is_seeded() -> None:
    vectors, labels = spread(200, 8)
    apart = np.eye(8)[labels] + 0.01 * vectors[:, :8]
    assert nmi(apart, labels, restarts=5) == pytest.approx(1, abs=0.02)
    noise = np.random.default_rng(1).normal(size=(200, 8))
    assert nmi(noise, labels) < 0.4
    assert nmi(noise, labels, seed=3) == nmi(noise, labels, seed=3)
    assert nmi(np.ones((6, 2)), [0, 0, 0, 1, 1, 1]) == 0
    with pytest.raises(InputError, match="do not fit"):
        nmi(noise, labels[:-1])


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 1, 2], {}, "none of 3 queries"),
        ([0, 0], {}, "do not fit 3 embeddings"),
        ([0, 0, -1], {}, "below 0"),
        ([0.0, 0.0, 1.0], {}, "type float64"),
        ([0, 0, 1], {"ks": (0,)}, "cannot be counted to"),
        ([0, 0, 1], {"ks": ()}, "cannot be counted to"),
        ([0, 0, 1], {"gallery": np.eye(3)}, "belong together"),
        ([0, 0, 1], {"gallery": np.eye(2), "gallery_labels": [0, 1]}, "2 dimensions and the embeddings have 3"),
        ([0, 0, 1], {"gallery": np.eye(3), "gallery_labels": [7, 8, 9]}, "none of 3 queries"),
        ([0, 0, 1], {"groups": [0, 1]}, "do not fit"),
        ([0, 0, 1], {"groups": [0, 0, 1]}, "none of 3 queries"),
        ([0, 0, 1], {"gallery": np.eye(3) * np.nan, "gallery_labels": [0, 1, 2]}, "gallery: row 0 is not all finite"),
    ],
)
def test_bad_input_is_refused_by_name(labels: list[int], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        recall_at_k(np.eye(3), labels, **options)


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="row 1 is not all finite"):
        retrieval_summary([[1.0, 0.0], [np.nan, 1.0]], [0, 0])
