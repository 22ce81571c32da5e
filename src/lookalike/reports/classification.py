"""The report of a run: one HTML file that needs nothing beside it, for a screen, a phone or paper.

The numbers at its top are the receipt's; everything below is drawn from the logits. The same inputs give the same
bytes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from lookalike.evaluation.calibration import fit_temperature, log_softmax, reliability
from lookalike.evaluation.classification import confusion_matrix, most_confused_pairs, per_class_accuracy, predictions
from lookalike.reports import charts, html
from lookalike.reports.charts import Line

ALL_CLASSES = 40  # with more, only the best and worst are shown at once, and there is no confusion matrix


EXTREMES = 15


LISTED = 1000  # classes in the list of all; more would make the file large


PAIRS, PICTURES = 8, 4  # confused pairs, and pictures of each direction


MISTAKES = 24


FEW = 10  # images of one confidence that say little


def write_report(
    path: Path,
    *,
    title: str,
    recipe_yaml: str,
    receipt: dict[str, Any],
    history: Sequence[dict[str, Any]],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    images: NDArray[np.uint8],
    class_names: Sequence[str],
    remark: str | None,
    paths: Sequence[str] | None = None,
) -> None:
    """Write the report of a measured network: complete or not at all.

    Args:
        path: the file; its folder is made when missing.
        title: of the page, such as the run's name.
        recipe_yaml: the resolved recipe; empty when there is none.
        receipt: `results` as `classification.summary` gives them with how they were measured, and `data`; the other
            fields of a run's receipt are shown where they are there.
        history: the records of `metrics.jsonl`; empty for a model that was only measured.
        logits: (N, C) float32.
        labels: (N,) int64.
        images: (N, S, S, 3) uint8, the pictures measured.
        class_names: C of them, any text.
        remark: what a reader must know about the data.
        paths: N, what the pictures are called; None: they stay nameless.

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
        pairs=findings.confused(PAIRS, PICTURES),
        mistakes=findings.surest_mistakes(MISTAKES),
        wrong=int(findings.wrong.sum()),
    )
    html.write(path, text)


def headline(results: dict[str, Any], findings: ClassificationFindings) -> dict[str, Any]:
    """The numbers at the top, as text, and what to compare them with."""
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
        "interval": f"{100 * low:.1f} to {share(high, 1)}",
        "chance": share(1 / count, 1),
        "top5": share(results["top5"]) if count > 5 else None,
        "mean_class": share(results["mean_class_accuracy"]),
        "nll": f"{results['nll']:.3f}",
        "nll_even": f"{math.log(count):.3f}",
        "ece": share(results["ece"], 1),
        "ece_after": share(results["ece_cross_fitted"], 1),
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in n independent images (Wilson, 1927), in 0..1.

    >>> tuple(round(end, 3) for end in wilson(0.5, 100))
    (0.404, 0.596)
    """
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def how_measured(results: dict[str, Any], n: int) -> list[str]:
    """How the numbers came about, in a few words each.

    >>> how_measured({"split": "val", "image_size": 64, "flip": False}, 1200)
    ['val split', '1,200 images', '64 × 64 pixels', 'no flip averaging']
    """
    images = f"{n:,} image{'' if n == 1 else 's'}"
    words = [f"{results['split']} split" if "split" in results else "", images]
    if "image_size" in results:
        words.append(f"{results['image_size']} × {results['image_size']} pixels")
    if "crop" in results:
        words.append(f"{results['crop']} crop")
    if "flip" in results:
        words.append("averaged with the mirrored image (flip)" if results["flip"] else "no flip averaging")
    if "weights" in results:
        words.append(f"weights: {results['weights']}")
    return [word for word in words if word]


def training_charts(history: Sequence[dict[str, Any]], class_count: int) -> list[tuple[str, str, Markup]]:
    """Title, caption and chart of what was logged: accuracy, loss, learning rate and resolution over the epochs.

    Of five classes and fewer, there is no top-5.
    """

    def series(kind: str, key: str) -> list[tuple[float, float]]:
        return [(r["epoch"], r[key]) for r in history if r.get("kind") == kind and r.get(key) is not None]

    plans: list[tuple[str, str, list[Line], charts.Format, bool]] = [
        (
            "Accuracy",
            "On the validation images, in the precision of the training.",
            [
                Line("top-1", series("eval", "top1")),
                *([Line("top-5", series("eval", "top5"))] if class_count > 5 else []),
            ],
            charts.percent,
            False,
        ),
        (
            "Loss",
            "Training loss is that of augmented images, with label smoothing or mixing where the recipe has them: "
            "the two need not meet.",
            [Line("training", series("train", "loss")), Line("validation", series("eval", "nll"))],
            charts.plain,
            False,
        ),
        ("Learning rate", "", [Line("rate", series("train", "lr"))], charts.plain, False),
        ("Resolution", "Side of the training images.", [Line("side", series("train", "size"))], charts.pixels, True),
    ]
    drawn = []
    for title, caption, lines, form, stairs in plans:
        about = f"{title} over the epochs of the training."
        if chart := charts.line_chart(lines, about=about, x_name="epoch", form=form, stairs=stairs):
            drawn.append((title, caption, chart))
    return drawn


def confidence(findings: ClassificationFindings) -> dict[str, Any]:
    """The reliability diagram, and in words whether the network is too sure of itself."""
    temperature = fit_temperature(findings.logits, findings.labels)
    sure, right = float(findings.confidence.mean()), float(1 - findings.wrong.mean())
    before = reliability(np.exp(log_softmax(findings.logits)), findings.labels)
    scaled = temperature.is_fitted
    after = reliability(np.exp(log_softmax(findings.logits / temperature.value)), findings.labels) if scaled else []
    few = min(FEW, len(findings.labels) // 50)
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
        "quartiles": quartiles(known, shares) if many else None,
        "listed": count <= LISTED,
        "histogram": charts.histogram(shares, about="How many classes have which accuracy.") if many else None,
        "names": findings.names,
        "matrix": findings.matrix.tolist() if count <= ALL_CLASSES else None,
    }


def quartiles(known: Sequence[ClassRow], shares: Sequence[float]) -> str:
    """The spread of the classes in a sentence."""
    low, middle, high = (charts.percent(float(end)) for end in np.quantile(shares, (0.25, 0.5, 0.75)))
    best, worst = known[0], known[-1]
    return (
        f"Half of the classes lie between {low} and {high}, around {middle}. The best is {best.name}, "
        f"{charts.percent(max(shares))}; the worst {worst.name}, {charts.percent(min(shares))}."
    )


# What is worth showing of a measured network: its classes, the pairs it confuses, the mistakes it is surest of.

LARGEST = 96  # pixels of a picture's side; larger ones are made smaller


QUALITY = 88  # of the JPEGs


@dataclass(frozen=True)
class ReportImage:
    """An image that was mistaken: a data URI, its side in pixels, the network's confidence in its guess, 0..1, and its
    path; empty where that is not known.
    """

    source: str
    side: int
    truth: str
    guess: str
    sure: float
    path: str = ""


@dataclass(frozen=True)
class Direction:
    """Images of one class taken for another: how many of how many, and pictures of some."""

    truth: str
    guess: str
    times: int
    images: int
    pictures: list[ReportImage]


@dataclass(frozen=True)
class ClassRow:
    """A class: share right (None without images), number of images, and what it is most often taken for."""

    name: str
    share: float | None
    images: int
    taken_for: str | None
    times: int


class ClassificationFindings:
    """What a network said of each image.

    Args:
        logits: (N, C) float32.
        labels: (N,) int64.
        images: (N, S, S, 3) uint8.
        class_names: C of them.
        paths: of the images, N; None: not known.

    Raises:
        InputError: logits and labels that cannot be measured.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        images: NDArray[np.uint8],
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
        """The mistakes that the network was surest of, surest first."""
        return self._pictures(self.wrong, most)

    def confused(self, pairs: int, pictures: int) -> list[tuple[Direction, ...]]:
        """The pairs of classes taken for each other most often; the directions that occur, more frequent first.

        Args:
            pairs: at most so many.
            pictures: at most so many of each direction, the surest mistakes first.
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
        side, sure = self.images.shape[1], float(self.confidence[row])
        return ReportImage(data_uri(self.images[row]), side, truth, guess, sure, path)


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture, (S, S, 3) uint8, as a JPEG in a data URI, made smaller where its side is more than `LARGEST`."""
    picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
