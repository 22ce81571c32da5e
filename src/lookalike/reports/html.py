"""What every report shares: the templates, how a receipt is put into words, and how the file is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from lookalike.files import atomic_write, cannot_write
from lookalike.reports import charts

HERE = Path(__file__).parent
NAMES = (
    "report.html.j2",
    "retrieval_report.html.j2",
    "report_bars.html.j2",
    "report_facts.html.j2",
    "report_style.css",
)
TEMPLATES = {name: (HERE / name).read_text(encoding="utf-8") for name in NAMES}  # once: a long run keeps its own


def rendered(name: str, **values: Any) -> str:
    """A template filled in; text from outside stays text, and a value that is missing is an error."""
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
    """The line below the title: which network, how large, on which data, trained for how long; what is known of it."""
    words = [receipt.get("model", "")]
    if parameters := receipt.get("parameters"):
        words.append(f"{parameters / 1e6:.3g} million parameters")
    if name := receipt.get("data", {}).get("name"):
        words.append(str(name))
    if "seconds" in receipt:
        words.append(f"trained in {duration(receipt['seconds'])}")
    return " · ".join(word for word in words if word)


def copies(receipt: dict[str, Any]) -> str | None:
    """What a receipt says of images that were both trained and measured on."""
    found = receipt.get("data", {}).get("copies")
    return None if not found else f"Measured images: {found['sentence']}."


def facts(receipt: dict[str, Any], also: Sequence[tuple[str, str | None]] = ()) -> list[tuple[str, str]]:
    """What a receipt says of how the numbers came about: (what, in words); only what is there.

    Args:
        receipt: of a run, or of a model that was only measured.
        also: more of the kind, put after the images.
    """
    data, machine = receipt.get("data", {}), receipt.get("hardware", {})
    found: list[tuple[str, str | None]] = [
        ("Network", receipt.get("model")),
        ("Parameters", number(receipt.get("parameters"))),
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


def number(value: int | None) -> str | None:
    """A count with its thousands apart; None stays None."""
    return None if value is None else f"{value:,}"


def _product(one: int | None, other: int | None) -> str | None:
    return None if one is None or other is None else f"{one} × {other}"


def write(path: Path, text: str) -> None:
    """Write a page beside its place and rename it into it; the folder is made when missing.

    Raises:
        InputError: that cannot be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    atomic_write(path, text)
