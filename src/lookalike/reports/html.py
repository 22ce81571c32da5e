"""What all reports share: templates, facts from a receipt, charts of the training, rows of classes, and the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lookalike.files import atomic_write, cannot_write
from lookalike.reports import charts
from lookalike.reports.charts import Line

HERE = Path(__file__).parent
NAMES = (
    "report.html.j2",
    "retrieval_report.html.j2",
    "report_bars.html.j2",
    "report_facts.html.j2",
    "report_style.css",
)
TEMPLATES = {
    name: (HERE / name).read_text(encoding="utf-8") for name in NAMES
}  # a long run keeps those it started with
ALL_CLASSES = 40  # with more classes, only the best and the worst are shown at once
MAX_LISTED_CLASSES = 1000  # in the list of all classes; more would make the file large
IMAGE_SIDE = 96  # pixels; larger images are reduced


@dataclass(frozen=True)
class ClassRow:
    """A class: share right (None without images), number of images, and what it is most often taken for."""

    name: str
    share: float | None
    images: int
    taken_for: str | None
    times: int


@dataclass(frozen=True)
class TrainingChart:
    """A chart over the epochs of a training.

    Args:
        title: of the chart.
        caption: below the title.
        lines: of each line the name, and the kind and the key of its records in `metrics.jsonl`.
        format: of a value.
        stairs: draw steps.
    """

    title: str
    caption: str
    lines: Sequence[tuple[str, str, str]]
    format: charts.Format = charts.plain
    stairs: bool = False


RATE_AND_RESOLUTION = (
    TrainingChart("Learning rate", "", [("rate", "train", "lr")]),
    TrainingChart("Resolution", "Side of the training images.", [("side", "train", "size")], charts.pixels, True),
)


def rendered(name: str, **values: Any) -> str:
    """Render a template. Values are escaped; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = charts.percent
    return environment.get_template(name).render(**values)


def lead(receipt: dict[str, Any]) -> str:
    """The line below the title: the network, its size, the data, and the time of the training, as far as known."""
    words = [receipt.get("model", "")]
    if parameters := receipt.get("parameters"):
        words.append(f"{parameters / 1e6:.3g} million parameters")
    if name := receipt.get("data", {}).get("name"):
        words.append(str(name))
    if "seconds" in receipt:
        words.append(f"{'fitted' if 'fit' in receipt else 'trained'} in {duration(receipt['seconds'])}")
    return " · ".join(word for word in words if word)


def copies(receipt: dict[str, Any]) -> str | None:
    """A sentence on images that were both trained and measured on, from a receipt."""
    found = receipt.get("data", {}).get("copies")
    return None if not found else f"Measured images: {found['sentence']}."


def facts(receipt: dict[str, Any], also: Sequence[tuple[str, str | None]] = ()) -> list[tuple[str, str]]:
    """How the numbers of a receipt came about: (name, value) of the facts that it holds.

    Args:
        receipt: of a run, or of a model that was only evaluated.
        also: further facts, listed after the images.
    """
    data, machine = receipt.get("data", {}), receipt.get("hardware", {})
    found: list[tuple[str, str | None]] = [
        ("Network", receipt.get("model")),
        ("Parameters", number(receipt.get("parameters"))),
        ("Classifier", _classifier(receipt)),
        ("Data", data.get("name")),
        ("Training images", number(data.get("train"))),
        ("Validation images", number(data.get("val"))),
        *also,
        ("Left out, undecodable", number(data.get("skipped") or None)),
        ("Data fingerprint", data.get("fingerprint")),
        ("Epochs", number(receipt.get("epochs"))),
        ("Steps", number(receipt.get("steps"))),
        ("Batch size", number(receipt.get("batch_size"))),
        ("Seed", number(receipt.get("seed"))),
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


def conditions(results: dict[str, Any]) -> list[str]:
    """The resolution, the flip averaging and the weights of a measurement, in a few words each."""
    words = []
    if "image_size" in results:
        words.append(f"{results['image_size']} × {results['image_size']} pixels")
    if "crop" in results:
        words.append(f"{results['crop']} crop")
    if "flip" in results:
        words.append("averaged with the mirrored image (flip)" if results["flip"] else "no flip averaging")
    if "weights" in results:
        words.append(f"weights: {results['weights']}")
    return words


def interval_words(low: float, high: float) -> str:
    """An interval of shares: "48.9 to 51.9 %"."""
    return f"{100 * low:.1f} to {charts.percent(high, 1)}"


def quartiles(known: Sequence[ClassRow]) -> str:
    """The spread of the classes, best first, in a sentence."""
    shares = [row.share for row in known if row.share is not None]
    low, middle, high = (charts.percent(float(end)) for end in np.quantile(shares, (0.25, 0.5, 0.75)))
    return (
        f"Half of the classes lie between {low} and {high}, around {middle}. The best is {known[0].name}, "
        f"{charts.percent(max(shares))}; the worst {known[-1].name}, {charts.percent(min(shares))}."
    )


def training_charts(history: Sequence[dict[str, Any]], plans: Sequence[TrainingChart]) -> list[tuple[str, str, Markup]]:
    """Title, caption and chart of what a training logged: of the plans, learning rate and resolution; if there is any.

    Args:
        history: the records of `metrics.jsonl`.
        plans: the charts before learning rate and resolution.
    """
    drawn = []
    for plan in (*plans, *RATE_AND_RESOLUTION):
        lines = [
            Line(name, [(r["epoch"], r[key]) for r in history if r.get("kind") == kind and r.get(key) is not None])
            for name, kind, key in plan.lines
        ]
        about = f"{plan.title} over the epochs of the training."
        chart = charts.line_chart(lines, about=about, x_name="epoch", form=plan.format, stairs=plan.stairs)
        if chart:
            drawn.append((plan.title, plan.caption, chart))
    return drawn


def duration(seconds: float) -> str:
    """A time in at most two units.

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
    """An ISO date and time for people: "2025-05-01 12:30 UTC"."""
    return datetime.fromisoformat(date).strftime("%Y-%m-%d %H:%M %Z").strip()


def number(value: int | None) -> str | None:
    """A count with thousands separators; None stays None."""
    return None if value is None else f"{value:,}"


def _classifier(receipt: dict[str, Any]) -> str | None:
    """What `fit` made, on the features of which model; None for a trained network."""
    if (fit := receipt.get("fit")) is None:
        return None
    return f"{fit['classifier']} (strength {fit['strength']:g}) on the features of {receipt['start']['model']}"


def _product(one: int | None, other: int | None) -> str | None:
    return None if one is None or other is None else f"{one} × {other}"


def write(path: Path, text: str) -> None:
    """Write a page, complete or not at all; its folder is made if it is missing.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    atomic_write(path, text)
