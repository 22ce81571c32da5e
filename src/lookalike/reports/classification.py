"""The report of a classifier: one self-contained HTML file for a screen, a phone or paper.

The numbers at its top are those of the receipt; everything below is drawn from the logits. The same inputs give the
same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lookalike.evaluation.calibration import fit_temperature, log_softmax, reliability
from lookalike.evaluation.classification import (
    chance_level,
    confusion_matrix,
    is_at_chance,
    most_confused_pairs,
    per_class_accuracy,
    predictions,
)
from lookalike.image.encoding import jpeg_data_uri
from lookalike.reports import charts, html
from lookalike.reports.html import ALL_CLASSES, IMAGE_SIDE, MAX_LISTED_CLASSES, ClassRow, TrainingChart

EXTREMES = 15  # classes shown as best, and as worst
CONFUSED_PAIRS = 8
IMAGES_PER_DIRECTION = 4  # of a confused pair
MISTAKES = 24
FEW_IMAGES = 10  # a bin of the reliability diagram with fewer says little


class ImageRows(Protocol):
    """Images by their row: an array (N, S, S, 3) uint8, or what reads an image (S, S, 3) when it is shown."""

    def __getitem__(self, row: int, /) -> NDArray[np.uint8]: ...


def write_report(
    path: Path,
    *,
    title: str,
    recipe_yaml: str,
    receipt: dict[str, Any],
    history: Sequence[dict[str, Any]],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    images: ImageRows,
    class_names: Sequence[str],
    remark: str | None,
    paths: Sequence[str] | None = None,
) -> None:
    """Write the report of an evaluated classifier, complete or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        title: of the page, such as the name of the run.
        recipe_yaml: the resolved recipe; empty if there is none.
        receipt: `results` as `evaluate_classification` gives them, and `data`; other fields of a run's receipt are
            shown if they are present.
        history: the records of `metrics.jsonl`; empty for a model that was only evaluated.
        logits: (N, C) float32.
        labels: (N,) int64.
        images: N, that were evaluated.
        class_names: C of them, any text.
        remark: what a reader must know about the data.
        paths: N, of the images; None: not known.

    Raises:
        InputError: logits and labels that cannot be measured, or a file that cannot be written.
    """
    findings = ClassificationFindings(logits, labels, images, class_names, paths)
    text = html.rendered(
        "report.html.j2",
        title=title,
        lead=html.lead(receipt),
        remark=remark,
        copies=html.copies(receipt),
        recipe_yaml=recipe_yaml,
        results=receipt["results"],
        how=how_measured(receipt["results"], len(labels)),
        facts=html.facts(receipt),
        charts=training_charts(history, len(class_names)),
        **headline(receipt["results"], findings),
        **confidence(findings),
        **classes(findings),
        pairs=findings.confused(CONFUSED_PAIRS, IMAGES_PER_DIRECTION),
        mistakes=findings.surest_mistakes(MISTAKES),
        wrong=int(findings.wrong.sum()),
    )
    html.write(path, text)


def headline(results: dict[str, Any], findings: ClassificationFindings) -> dict[str, Any]:
    """The numbers at the top, as text, and those to compare them with."""
    n, count = findings.logits.shape
    digits = 2 if n >= 1000 else 1
    low, high = wilson(results["top1"], n)

    def share(value: float, digits: int = digits) -> str:
        return f"{100 * value:.{digits}f}\u00a0%"

    return {
        "n": n,
        "class_count": count,
        "top1": share(results["top1"]),
        "right": round(results["top1"] * n),
        "interval": html.interval_words(low, high),
        "chance": share(1 / count, 1),
        "at_chance": is_at_chance(findings.logits, findings.labels),
        "one_class": share(chance_level(findings.labels, count), 1),
        "top5": share(results["top5"]) if count > 5 else None,
        "mean_class": share(results["mean_class_accuracy"]),
        "nll": f"{results['nll']:.3f}",
        "nll_even": f"{math.log(count):.3f}",
        "ece": share(results["ece"], 1),
        "ece_after": share(results["ece_cross_fitted"], 1),
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n independent images (Wilson, 1927), 0 to 1.

    >>> tuple(round(end, 3) for end in wilson(0.5, 100))
    (0.404, 0.596)
    """
    from scipy.stats import binomtest

    interval = binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def how_measured(results: dict[str, Any], n: int) -> list[str]:
    """How the numbers were measured, in a few words each.

    >>> how_measured({"split": "val", "image_size": 64, "flip": False}, 1200)
    ['val split', '1,200 images', '64 × 64 pixels', 'no flip averaging']
    """
    images = f"{n:,} image{'' if n == 1 else 's'}"
    where = [f"{results['split']} split"] if "split" in results else []
    if folds := results.get("folds"):
        where = [f"{folds}-fold cross-validation: each image by a classifier that was fitted without it"]
    return [*where, images, *html.conditions(results)]


def training_charts(history: Sequence[dict[str, Any]], class_count: int) -> list[tuple[str, str, Markup]]:
    """Charts of accuracy and loss over the epochs; no top-5 for five classes or fewer."""
    top5 = [("top-5", "eval", "top5")] if class_count > 5 else []
    accuracy = TrainingChart(
        "Accuracy",
        "On the validation images, in the precision of the training.",
        [("top-1", "eval", "top1"), *top5],
        charts.percent,
    )
    loss = TrainingChart(
        "Loss",
        "Training loss is that of augmented images, with label smoothing or mixing where the recipe has them: "
        "the two need not meet.",
        [("training", "train", "loss"), ("validation", "eval", "nll")],
    )
    return html.training_charts(history, [accuracy, loss])


def confidence(findings: ClassificationFindings) -> dict[str, Any]:
    """The reliability diagram, and in words whether the network is overconfident."""
    temperature = fit_temperature(findings.logits, findings.labels)
    sure, right = float(findings.confidence.mean()), float(1 - findings.wrong.mean())
    before = reliability(np.exp(log_softmax(findings.logits)), findings.labels)
    scaled = temperature.is_fitted
    after = reliability(np.exp(log_softmax(findings.logits / temperature.value)), findings.labels) if scaled else []
    few = min(FEW_IMAGES, len(findings.labels) // 50)
    about = (
        f"Reliability diagram. Mean confidence {charts.percent(sure, 1)}, share recognised {charts.percent(right, 1)}."
    )
    if abs(sure - right) < 0.01:
        verdict = "about as sure as it is right"
    else:
        verdict = "too sure of itself" if sure > right else "less sure than it might be"
    return {
        "sure": sure,
        "share_right": right,
        "verdict": verdict,
        "temperature": temperature.value,
        "not_scaled": temperature.reason,
        "reliability": charts.reliability_diagram(before, after, few=few, about=about),
        "few": few,
        "scaled": scaled,
    }


def classes(findings: ClassificationFindings) -> dict[str, Any]:
    """The classes, best first: all of them, or the extremes and a histogram; and the confusion matrix of few."""
    rows = findings.classes()
    known = [row for row in rows if row.share is not None]
    count = len(rows)
    many = len(known) > ALL_CLASSES
    shares = [row.share for row in known if row.share is not None]
    return {
        "rows": rows,
        "known": known,
        "absent": count - len(known),
        "best": known[:EXTREMES] if many else None,
        "worst": known[::-1][:EXTREMES] if many else None,
        "quartiles": html.quartiles(known) if many else None,
        "listed": count <= MAX_LISTED_CLASSES,
        "histogram": charts.histogram(shares, about="How many classes have which accuracy.") if many else None,
        "names": findings.names,
        "matrix": findings.matrix.tolist() if count <= ALL_CLASSES else None,
    }


@dataclass(frozen=True)
class ReportImage:
    """A misclassified image: a data URI, its side in pixels, the confidence in the guess, 0 to 1, and its path."""

    source: str
    side: int
    truth: str
    guess: str
    sure: float
    path: str = ""


@dataclass(frozen=True)
class Direction:
    """Images of one class taken for another: how many of how many, and some of them."""

    truth: str
    guess: str
    times: int
    images: int
    pictures: list[ReportImage]


class ClassificationFindings:
    """The classes of a classifier, the pairs that it confuses, and its mistakes.

    Args:
        logits: (N, C) float32.
        labels: (N,) int64.
        images: N.
        class_names: C of them.
        paths: of the images, N; None: not known.

    Raises:
        InputError: logits and labels that cannot be measured.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        images: ImageRows,
        class_names: Sequence[str],
        paths: Sequence[str] | None = None,
    ) -> None:
        self.logits, self.labels, self.images, self.names = logits, labels, images, list(class_names)
        self.paths = paths
        self.matrix = confusion_matrix(logits, labels)  # (C, C)
        self.guesses = predictions(logits)  # (N,)
        self.wrong = self.guesses != labels  # (N,)
        self.confidence = np.exp(log_softmax(logits)).max(1)  # (N,)

    def classes(self) -> list[ClassRow]:
        """All classes, best first; those without images last."""
        shares = per_class_accuracy(self.logits, self.labels)
        mistaken = self.matrix - np.diag(self.matrix.diagonal())
        rows = []
        for label, (name, share) in enumerate(zip(self.names, shares.tolist(), strict=True)):
            other, times = int(mistaken[label].argmax()), int(mistaken[label].max())
            taken_for = self.names[other] if times else None
            known = None if math.isnan(share) else share
            rows.append(ClassRow(name, known, int(self.matrix[label].sum()), taken_for, times))
        return sorted(rows, key=lambda row: 1.0 if row.share is None else -row.share)

    def surest_mistakes(self, most: int) -> list[ReportImage]:
        """The mistakes of the highest confidence, in descending order."""
        return self._pictures(self.wrong, most)

    def confused(self, pairs: int, pictures: int) -> list[tuple[Direction, ...]]:
        """The pairs of classes taken for each other most often; the directions that occur, more frequent first.

        Args:
            pairs: at most.
            pictures: at most, for each direction; the mistakes of the highest confidence.
        """
        found = []
        for one, other, _ in most_confused_pairs(self.logits, self.labels, pairs):
            ways = (self._direction(one, other, pictures), self._direction(other, one, pictures))
            found.append(tuple(sorted((way for way in ways if way.times), key=lambda way: -way.times)))
        return found

    def _direction(self, truth: int, guess: int, pictures: int) -> Direction:
        chosen = (self.labels == truth) & (self.guesses == guess)
        times, images = int(self.matrix[truth, guess]), int(self.matrix[truth].sum())
        return Direction(self.names[truth], self.names[guess], times, images, self._pictures(chosen, pictures))

    def _pictures(self, chosen: NDArray[np.bool_], most: int) -> list[ReportImage]:
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(-self.confidence[rows], kind="stable")][:most]
        return [self._picture(int(row)) for row in rows]

    def _picture(self, row: int) -> ReportImage:
        truth, guess = self.names[self.labels[row]], self.names[self.guesses[row]]
        path = self.paths[row] if self.paths is not None else ""
        image, sure = self.images[row], float(self.confidence[row])
        return ReportImage(jpeg_data_uri(image, IMAGE_SIDE), image.shape[0], truth, guess, sure, path)
