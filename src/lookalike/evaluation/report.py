"""The report of a run: one HTML file that needs nothing beside it, for a screen, a phone or paper.

The numbers at its top are the receipt's; everything below is drawn from the logits. The same inputs give the same
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.evaluation import figures
from lookalike.evaluation.calibration import fit_temperature, log_softmax, reliability
from lookalike.evaluation.figures import Line
from lookalike.evaluation.findings import ClassRow, Findings

TEMPLATE = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")  # once: a long run keeps its own
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

    Raises:
        InputError: logits and labels that cannot be measured, or a file that cannot be written.
    """
    findings = Findings(logits, labels, images, class_names)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = figures.percent
    text = environment.from_string(TEMPLATE).render(
        title=title,
        lead=lead(receipt),
        remark=remark,
        recipe_yaml=recipe_yaml,
        results=receipt["results"],
        how=how_measured(receipt["results"], len(labels)),
        facts=facts(receipt),
        charts=training_charts(history),
        **headline(receipt["results"], findings),
        **confidence(findings),
        **classes(findings),
        pairs=findings.confused(PAIRS, PICTURES),
        mistakes=findings.surest_mistakes(MISTAKES),
        wrong=int(findings.wrong.sum()),
    )
    _write(path, text)


def lead(receipt: dict[str, Any]) -> str:
    """The line below the title: which network, how large, on which data, trained for how long; what is known of it."""
    words = [receipt.get("model", "")]
    if parameters := receipt.get("parameters"):
        words.append(f"{parameters / 1e6:.3g} million parameters")
    if name := receipt.get("data", {}).get("name"):
        words.append(str(name))
    if "seconds" in receipt:
        words.append(f"trained in {duration(receipt['seconds'])}")
    return " · ".join(word for word in words if word)


def headline(results: dict[str, Any], findings: Findings) -> dict[str, Any]:
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
    """How the numbers came about, in a few words each."""
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


def training_charts(history: Sequence[dict[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Title, caption and chart of what was logged: accuracy, loss, learning rate and resolution over the epochs."""

    def series(kind: str, key: str) -> list[tuple[float, float]]:
        return [(r["epoch"], r[key]) for r in history if r.get("kind") == kind and r.get(key) is not None]

    plans: list[tuple[str, str, list[Line], figures.Format, bool]] = [
        (
            "Accuracy",
            "On the validation images, in the precision of the training.",
            [Line("top-1", series("eval", "top1")), Line("top-5", series("eval", "top5"))],
            figures.percent,
            False,
        ),
        (
            "Loss",
            "Training loss is that of augmented images, with label smoothing or mixing where the recipe has them: "
            "the two need not meet.",
            [Line("training", series("train", "loss")), Line("validation", series("eval", "nll"))],
            figures.plain,
            False,
        ),
        ("Learning rate", "", [Line("rate", series("train", "lr"))], figures.plain, False),
        ("Resolution", "Side of the training images.", [Line("side", series("train", "size"))], figures.pixels, True),
    ]
    charts = []
    for title, caption, lines, form, stairs in plans:
        about = f"{title} over the epochs of the training."
        if chart := figures.line_chart(lines, about=about, x_name="epoch", form=form, stairs=stairs):
            charts.append((title, caption, chart))
    return charts


def confidence(findings: Findings) -> dict[str, Any]:
    """The reliability diagram, and in words whether the network is too sure of itself."""
    temperature = fit_temperature(findings.logits, findings.labels)
    sure, right = float(findings.confidence.mean()), float(1 - findings.wrong.mean())
    before = reliability(np.exp(log_softmax(findings.logits)), findings.labels)
    scaled = len(findings.labels) >= 4  # as `calibration.cross_fitted_ece`
    after = reliability(np.exp(log_softmax(findings.logits / temperature)), findings.labels) if scaled else []
    few = min(FEW, len(findings.labels) // 50)
    about = (
        f"Reliability diagram. Mean confidence {figures.percent(sure, 1)}, share recognised "
        f"{figures.percent(right, 1)}."
    )
    if abs(sure - right) < 0.01:
        verdict = "about as sure as it is right"
    else:
        verdict = "too sure of itself" if sure > right else "less sure than it might be"
    return {
        "sure": sure,
        "share_right": right,
        "verdict": verdict,
        "temperature": temperature,
        "reliability": figures.reliability_diagram(before, after, few=few, about=about),
        "few": few,
        "scaled": scaled,
    }


def classes(findings: Findings) -> dict[str, Any]:
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
        "histogram": figures.histogram(shares, about="How many classes have which accuracy.") if many else None,
        "names": findings.names,
        "matrix": findings.matrix.tolist() if count <= ALL_CLASSES else None,
    }


def quartiles(known: Sequence[ClassRow], shares: Sequence[float]) -> str:
    """The spread of the classes in a sentence."""
    low, middle, high = (figures.percent(float(end)) for end in np.quantile(shares, (0.25, 0.5, 0.75)))
    best, worst = known[0], known[-1]
    return (
        f"Half of the classes lie between {low} and {high}, around {middle}. The best is {best.name}, "
        f"{figures.percent(max(shares))}; the worst {worst.name}, {figures.percent(min(shares))}."
    )


def facts(receipt: dict[str, Any]) -> list[tuple[str, str]]:
    """What a receipt says of how the numbers came about: (what, in words); only what is there."""
    data, machine = receipt.get("data", {}), receipt.get("hardware", {})
    found: list[tuple[str, str | None]] = [
        ("Network", receipt.get("model")),
        ("Parameters", _number(receipt.get("parameters"))),
        ("Data", data.get("name")),
        ("Training images", _number(data.get("train"))),
        ("Validation images", _number(data.get("val"))),
        ("Left out, undecodable", _number(data.get("skipped") or None)),
        ("Data fingerprint", data.get("fingerprint")),
        ("Epochs", _number(receipt.get("epochs"))),
        ("Steps", _number(receipt.get("steps"))),
        ("Batch size", _number(receipt.get("batch_size"))),
        ("Seed", _number(receipt.get("seed"))),
        ("Time", duration(receipt["seconds"]) if "seconds" in receipt else None),
        ("Processor time", duration(receipt["cpu_seconds"]) if "cpu_seconds" in receipt else None),
        ("Device", machine.get("gpu") or receipt.get("device")),
        ("Processor", f"{machine['cores']} cores of {machine['cpu']}" if machine.get("cpu") else None),
        ("Memory", f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else None),
        ("System", machine.get("system")),
        ("Processes × threads", _product(receipt.get("processes"), receipt.get("threads"))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in receipt.get("versions", {}).items())),
        ("Commit", receipt.get("commit")),
        ("Date", moment(receipt["date"]) if "date" in receipt else None),
        ("Command", receipt.get("command")),
    ]
    return [(what, words) for what, words in found if words]


def duration(seconds: float) -> str:
    """A time in the two units that matter.

    >>> [duration(s) for s in (4.2, 61, 3599.7, 7500)]
    ['4.2 s', '1 min 1 s', '1 h 0 min', '2 h 5 min']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def moment(date: str) -> str:
    """An ISO date and time as one reads it: "2025-05-01 12:30 UTC"."""
    return datetime.fromisoformat(date).strftime("%Y-%m-%d %H:%M %Z").strip()


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _product(one: int | None, other: int | None) -> str | None:
    return None if one is None or other is None else f"{one} × {other}"


def _write(path: Path, text: str) -> None:
    """Write beside the place and rename into it.

    Raises:
        InputError: that cannot be done.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        if beside.is_file():
            beside.unlink()
        raise InputError(
            f"{path}: cannot write the report ({error.strerror}).", "Choose another place for it, or make room there."
        ) from None
