"""The report of retrieval: one self-contained HTML file for a screen, a phone or paper.

The numbers at its top are those of the receipt; everything below is drawn from the embeddings. The same inputs give
the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.evaluation.pair_similarity import PairSimilarities, similarities, threshold
from lookalike.evaluation.retrieval import THRESHOLD
from lookalike.reports import charts, html
from lookalike.reports.charts import map_chart, similarity_chart
from lookalike.reports.html import ALL_CLASSES, MAX_LISTED_CLASSES, ClassRow, TrainingChart
from lookalike.reports.protocol_table import protocol_words
from lookalike.reports.retrieval_examples import DEPTH, RetrievalFindings, chosen, layout

TYPICAL, BEST, FAILING = 6, 3, 3  # queries that are shown with their neighbours
EXTREMES = 12  # classes shown as hardest, and as easiest
WRONG_PAIRS = 12
MAP_POINTS, MAP_COLOURS = 1500, 12  # points on the map; classes with a colour
POINTS_PER_COLOUR = 40  # of a coloured class, if not all points fit
FALSE_MATCH_RATES = (0.01, 0.001)
SEED = 0


def write_retrieval_report(
    path: Path,
    *,
    title: str,
    recipe_yaml: str,
    receipt: dict[str, Any],
    history: Sequence[dict[str, Any]],
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    images: NDArray[np.uint8],
    class_names: Sequence[str],
    card: dict[str, Any],
    remark: str | None,
) -> None:
    """Write the report of a network evaluated by a protocol, complete or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        title: of the page, such as the name of the run.
        recipe_yaml: the resolved recipe; empty if there is none.
        receipt: `results` as `evaluate_retrieval` gives them (`recall_at_1` is required), and `data`; other fields of a
            run's receipt are shown if they are present.
        history: the records of `metrics.jsonl`; empty for a model that was only evaluated.
        embeddings: (N, D) float32 of length 1, each image searched among all others.
        labels: (N,) int64.
        images: (N, S, S, 3) uint8, the images that were evaluated.
        class_names: of the labels, any text.
        card: the protocol card, as `protocols.card` makes it.
        remark: what a reader must know about the data.

    Raises:
        InputError: a receipt without Recall@1, embeddings, labels and images that do not fit or cannot be measured, or
            a file that cannot be written.
    """
    results = receipt.get("results", {})
    if "recall_at_1" not in results:
        raise InputError(f"{title}: the receipt holds no recall_at_1.", "Measure the model by a protocol first.")
    findings = RetrievalFindings(embeddings, labels, images, class_names)
    rows = findings.classes()
    text = html.rendered(
        "retrieval_report.html.j2",
        title=title,
        lead=html.lead(receipt),
        remark=remark,
        copies=html.copies(receipt),
        recipe_yaml=recipe_yaml,
        how=how_measured(results, card, len(labels)),
        protocol=protocol_words(card, results),
        charts=training_charts(history, results),
        views=views(results),
        facts=html.facts(receipt, facts_of_retrieval(receipt)),
        depth=DEPTH,
        pairs=findings.wrong_pairs(WRONG_PAIRS),
        **headline(results, findings),
        **wall(findings),
        **classes(rows),
        **embedding_map(findings, rows),
        **similarity(similarities(findings.vectors, labels, seed=SEED)),
    )
    html.write(path, text)


def headline(results: dict[str, Any], findings: RetrievalFindings) -> dict[str, Any]:
    """The numbers at the top, as text: (name, value, what it means), those that are there."""
    queries = int(results.get("queries", findings.counted.sum()))
    digits = 2 if queries >= 1000 else 1
    about = {
        **{f"recall_at_{k}": (f"Recall@{k}", f"of the queries have one among the {k} nearest") for k in ks(results)},
        "map_at_r": ("MAP@R", "the order of all R images of the class counts"),
        "r_precision": ("R-precision", "of the R nearest are of the class, which has R more images"),
        "nmi": ("NMI", "k-means clusters against classes, 1 where they agree"),
        "threshold_recall_at_1": (
            f"Recall@1 above {results.get('threshold', THRESHOLD):g}",
            "a hit counts only if its cosine is greater",
        ),
    }
    numbers = []
    for key, (name, words) in about.items():
        if key == "recall_at_1" or results.get(key) is None:
            continue
        value = f"{results[key]:.3f}" if key == "nmi" else charts.percent(results[key], digits)
        numbers.append((name, value, words, interval(results, key)))
    searched = f"each searched among {len(findings.labels) - 1:,} other images"
    numbers.append(("Queries", f"{queries:,}", searched, None))
    return {
        "recall": charts.percent(results["recall_at_1"], digits),
        "right": round(results["recall_at_1"] * queries),
        "queries": queries,
        "excluded": int(results.get("excluded", (~findings.counted).sum())),
        "interval": interval(results, "recall_at_1"),
        "chance": charts.percent(findings.chance(), 1),
        "numbers": numbers,
    }


def ks(results: dict[str, Any]) -> list[int]:
    """The K of which a result holds Recall@K, ascending.

    >>> ks({"recall_at_8": 0.5, "recall_at_1": 0.2, "threshold_recall_at_4": 0.1})
    [1, 8]
    """
    return sorted(int(found[1]) for key in results if (found := re.fullmatch(r"recall_at_(\d+)", key)))


def interval(results: dict[str, Any], key: str) -> str | None:
    """The 95 % interval of a number in words, or None if the result has none."""
    ends = results.get("intervals", {}).get(key)
    return None if ends is None else html.interval_words(*ends)


def how_measured(results: dict[str, Any], card: dict[str, Any], n: int) -> list[str]:
    """How the numbers were measured, in a few words each."""
    words = [card.get("protocol"), f"{n:,} images"]
    if dim := results.get("dim", card.get("dim")):
        words.append(f"{dim} dimensions")
    if view := results.get("view"):
        words.append({"embedding": "the embedding", "features": "pooled features"}.get(view, view))
    if "image_size" not in results and "resolution" in card:
        results = {**results, "image_size": card["resolution"]}
    return [word for word in (*words, *html.conditions(results)) if word]


def facts_of_retrieval(receipt: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Facts that only a receipt of retrieval has: test images, loss, and the weights that the training started from."""
    start = receipt.get("start")
    words = None if start is None else f"{start['model']}, trained on {start['dataset']}"
    return [
        ("Test images", html.number(receipt.get("data", {}).get("test"))),
        ("Loss", receipt.get("loss")),
        ("Started from", "random weights" if "start" in receipt and start is None else words),
    ]


def views(results: dict[str, Any]) -> dict[str, Any]:
    """Recall of other vectors of the same images: headings and (name, texts) rows."""
    main = {"embedding": "embedding", "features": "pooled features"}.get(results.get("view", ""), "as above")
    names = {
        "features": "pooled features",
        "softmax": "softmax outputs",
        "features, flip averaged": "pooled features, averaged with the mirrored image's",
        "embedding, flip averaged": "embedding, averaged with the mirrored image's",
    }
    rows = [(main, results)]
    rows += [(names.get(name, name), view) for name, view in results.get("views", {}).items()]
    if results.get("without_duplicates"):
        rows.append((f"{main}, near-duplicates of a query left out", results["without_duplicates"]))
    keys = [f"recall_at_{k}" for k in ks(results)] + ["threshold_recall_at_1"]
    keys = [key for key in keys if any(key in row for _, row in rows)]
    heads = [
        f"@1 above {results.get('threshold', THRESHOLD):g}" if key.startswith("threshold") else f"@{key.split('_')[-1]}"
        for key in keys
    ]
    texts = [
        (name, [charts.percent(row[key], 1) if row.get(key) is not None else "–" for key in keys]) for name, row in rows
    ]
    return {"heads": heads, "rows": texts} if len(rows) > 1 else {}


def training_charts(history: Sequence[dict[str, Any]], results: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    """Charts of recall and loss over the epochs."""
    least = f"{results.get('threshold', THRESHOLD):g}"
    plans = [
        TrainingChart(
            "Recall",
            "On the test classes, in the precision of the training.",
            [(f"Recall@{k}", "eval", f"recall_at_{k}") for k in ks(results)[: len(charts.LOOKS)]],
            charts.percent,
        ),
        TrainingChart(
            "Recall@1 of the softmax outputs",
            f"By rank, and with hits counted only where the cosine is above {least}.",
            [
                ("by rank", "eval", "softmax_recall_at_1"),
                (f"above {least}", "eval", "softmax_threshold_recall_at_1"),
            ],
            charts.percent,
        ),
        TrainingChart("Loss", "Of the training batches, augmented.", [("training", "train", "loss")]),
    ]
    return html.training_charts(history, plans)


def wall(findings: RetrievalFindings) -> dict[str, Any]:
    """The queries shown: (heading, by which rule, the queries)."""
    typical = findings.typical(TYPICAL, seed=SEED)
    failing = findings.failing(FAILING, without=typical)
    best = findings.best(BEST, without=[*typical, *failing])
    groups = [
        ("Typical", f"Drawn among all queries, each equally likely (seed {SEED}).", typical),
        (
            "Best",
            f"The most right ones among the {DEPTH} nearest; of equals those most similar to them. One of each class.",
            best,
        ),
        (
            "Failing",
            f"The nearest is wrong: those with the fewest right ones among the {DEPTH} nearest, of equals those surest "
            "of the wrong one. One of each class.",
            failing,
        ),
    ]
    shown = [(name, rule, [findings.query(row) for row in rows]) for name, rule, rows in groups]
    return {"wall": [group for group in shown if group[2]]}


def classes(rows: Sequence[tuple[int, ClassRow]]) -> dict[str, Any]:
    """The classes, hardest first: all of them, or the extremes and a histogram."""
    known = [row for _, row in rows if row.share is not None]
    many = len(known) > ALL_CLASSES
    shares = [row.share for row in known if row.share is not None]
    about = "How many classes have which Recall@1."
    return {
        "known": known,
        "silent": len(rows) - len(known),
        "hardest": known[::-1][:EXTREMES] if many else known[::-1],
        "easiest": known[:EXTREMES] if many else None,
        "quartiles": html.quartiles(known) if many else None,
        "listed": many and len(known) <= MAX_LISTED_CLASSES,
        "histogram": charts.histogram(shares, about=about, x_name="Recall@1 of a class") if many else None,
    }


def embedding_map(findings: RetrievalFindings, rows: Sequence[tuple[int, ClassRow]]) -> dict[str, Any]:
    """The map, and the classes that have a colour on it: (number, name, Recall@1)."""
    known = [(label, row) for label, row in rows if row.share is not None]
    few = len(known) <= MAP_COLOURS
    hard = sorted(known, key=lambda pair: (pair[1].share or 0.0, -pair[1].images))[: MAP_COLOURS // 2]
    coloured = known if few else [*known[: MAP_COLOURS // 2], *hard]
    named = [label for label, _ in coloured]
    points = chosen(findings.labels, named, most=MAP_POINTS, each=POINTS_PER_COLOUR, seed=SEED)
    places = layout(findings.vectors[points], seed=SEED)
    if places is None:
        return {"map": None}
    own = findings.labels[points].tolist()
    number = {label: place for place, label in enumerate(named, 1)}
    about = f"Map of {len(points):,} embeddings in two dimensions, {len(named)} classes in colour."
    chart = map_chart(places, [findings.names[label] for label in own], [number.get(x, 0) for x in own], about=about)
    return {
        "map": chart,
        "coloured": [(place, row.name, row.share) for place, (_, row) in enumerate(coloured, 1)],
        "points": len(points),
        "every_point": len(points) == len(findings.labels),
        "every_class": len(named) == len(set(own)),
        "extremes": None if few else MAP_COLOURS // 2,
        "each": POINTS_PER_COLOUR,
        "seed": SEED,
    }


def similarity(pairs: PairSimilarities) -> dict[str, Any]:
    """The histograms, and in a table what a threshold on the cosine would find."""
    found = [(rate, threshold(pairs, rate)) for rate in FALSE_MATCH_RATES]
    some = [at for _, at in found if at]
    about = "Cosines of pairs of one class and of different classes."
    if some:
        about += " " + " ".join(
            f"Above {at.cosine:.3f} lie {charts.percent(at.found, 1)} of the same-class pairs and "
            f"{charts.percent(at.rate)} of the others."
            for at in some
        )
    return {
        "similarity": similarity_chart(pairs, some, about=about),
        "thresholds": found,
        "counts": [
            (name, len(looked), every)
            for name, looked, every in (
                ("of one class", pairs.same, pairs.all_same),
                ("of different classes", pairs.different, pairs.all_different),
            )
        ],
        "draw": SEED,
    }
