"""The results page: tables in Markdown, written from receipts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lookalike.errors import InputError, counted
from lookalike.files import atomic_write
from lookalike.reproduce import study as studies
from lookalike.reproduce.study import Planned, Study, is_retrieval, measured, views

FEW_IMAGES = "few_images-"  # begins the names of the receipts of `benchmarks/few_images.py`
FEW_IMAGES_ABOUT = (
    "Top-1 accuracy in percent, and in brackets the CPU seconds from image files to the model. All methods get the "
    "same training images and are measured on the same test images, single crop. With 120 test images an accuracy "
    "of 75 % has a 95 % interval of 8 points to either side, with 600 one of 3.5. The sets: ants and bees, clothing "
    "(photos by its owners), TrashNet (materials of waste, here 112 × 84 pixels). scikit-learn: "
    "`LogisticRegression()` on the same model's vectors. From scratch: the recipe `quickstart` with 60 epochs. "
    "Cells that are empty were not measured, and neither was timm's train.py where it has no column. See "
    "`benchmarks/few_images.py`."
)
FEW_IMAGES_METHODS = {
    "fit": "`fit`",
    "own": "`train own`",
    "sklearn": "scikit-learn",
    "scratch": "from scratch",
    "timm": "timm's train.py",
}
LINES_WITHOUT_RECEIPTS = 2  # of a study's part of the page
HEAD = """# Results

Written by `lookalike reproduce` from the receipts in `receipts/`. The protocols are described in the documentation
(`docs/protocols.md`), speed in `docs/benchmarks.md`. Each number is one run with one seed: differences of less than
about a point between networks are not significant.
"""


def read_receipts(folder: Path) -> dict[str, dict[str, Any]]:
    """All receipts in a folder, by the name of their run.

    Raises:
        InputError: a file is not a receipt.
    """
    receipts = {}
    for path in sorted(folder.glob("*.json")):
        try:
            receipts[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            if "results" not in receipts[path.stem]:
                raise ValueError("it has no results")
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a receipt ({error}).", "Delete it, then reproduce the run again.") from None
    return receipts


def page(name: str, receipts: dict[str, dict[str, Any]]) -> str:
    """The page with one study."""
    return "\n".join([HEAD, *part(name, receipts)])


def whole_page(receipts: dict[str, dict[str, Any]]) -> str:
    """The page with all studies that have receipts, except the demo."""
    by_task = sorted(studies.names(), key=lambda name: studies.load(name).rows[0].task)
    parts = [part(name, receipts) for name in by_task if name != "demo"]
    parts.append(few_images({name: each for name, each in receipts.items() if name.startswith(FEW_IMAGES)}))
    return "\n".join([HEAD, *(line for lines in parts if len(lines) > LINES_WITHOUT_RECEIPTS for line in lines)])


def few_images(receipts: dict[str, dict[str, Any]]) -> list[str]:
    """The part on few images per class, from the receipts of `benchmarks/few_images.py`; empty without any."""
    if not receipts:
        return []
    lines = ["## Few images per class\n", f"{FEW_IMAGES_ABOUT}\n"]
    for name, receipt in receipts.items():
        rows = receipt["results"]["rows"]
        lines.append(f"### {receipt['model']} at {receipt['image_size']} pixels, trained on {receipt['model_data']}\n")
        lines += few_images_table([row for row in rows if row["draw"] == 0])
        draws = len({row["draw"] for row in rows})
        times = Counter((row["set"], row["images"], row["method"]) for row in rows)
        again = {key for key, count in times.items() if count == draws}
        if draws > 1 and again:
            lines.append(f"\nThe mean of {draws} draws of the images, for the methods that were measured on all:\n")
            lines += few_images_table([row for row in rows if (row["set"], row["images"], row["method"]) in again])
        tests = ", ".join(f"{size} of {of}" for of, size in {row["set"]: row["tests"] for row in rows}.items())
        machine = f"{counted(receipt['threads'], 'thread')} on a shared {receipt['hardware']['cpu']}"
        lines.append(f"\nTest images: {tests}. [{name}](receipts/{name}.json), {receipt['date'][:10]}, {machine}, ")
        lines.append(f"commit {commit(receipt)}, `{receipt['command']}`\n")
    return lines


def few_images_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table with a row for each set and number of images; the best method of each is bold."""
    methods = [method for method in FEW_IMAGES_METHODS if any(row["method"] == method for row in rows)]
    lines = [
        f"| set | classes | images per class | {' | '.join(FEW_IMAGES_METHODS[each] for each in methods)} |",
        f"|---|---:|---:|{'---:|' * len(methods)}",
    ]
    for key in sorted({(row["set"], row["classes"], row["images"]) for row in rows}):
        of = [row for row in rows if (row["set"], row["classes"], row["images"]) == key]
        found = {
            method: (round(100 * fmean(each["top1"] for each in same), 1), fmean(each["cpu_seconds"] for each in same))
            for method in methods
            if (same := [row for row in of if row["method"] == method])
        }
        best = max(share for share, _ in found.values())
        cells = []
        for share, seconds in (found.get(method, (None, 0.0)) for method in methods):
            mark = "**" if share == best else ""
            cells.append("" if share is None else f"{mark}{share:.1f}{mark} ({seconds:.0f} s)")
        lines.append(f"| {' | '.join([key[0], str(key[1]), str(key[2]), *cells])} |")
    return lines


def part(name: str, receipts: dict[str, dict[str, Any]]) -> list[str]:
    """A study's part of the page: its description, and a section for each budget with receipts."""
    study = studies.load(name)
    sections = [f"## {study.title}\n", f"{study.about}\n"]
    for budget, words in study.budgets.items():
        planned = [p for p in studies.plan(study, budget) if p.name in receipts]
        if planned:
            sections += [f"### Budget {budget}: {words}\n", section(name, study, budget, planned, receipts)]
    return sections


def section(
    name: str, study: Study, budget: str, planned: Sequence[Planned], receipts: dict[str, dict[str, Any]]
) -> str:
    """The results of one budget, then hardware, date, seed, commit and command of each run."""
    lines = table(planned, receipts)
    lines += ["", "| run | hardware | date | seed | commit | command |", "|---|---|---|---|---|---|"]
    for p in planned:
        receipt = receipts[p.name]
        lines.append(
            f"| [{p.name}](receipts/{p.name}.json) | {hardware(receipt)} | {receipt['date'][:10]} "
            f"| {receipt['seed']} | {commit(receipt)} | `{receipt['command']}` |"
        )
    if remarks := sorted({receipts[p.name]["data"]["remark"] for p in planned} - {""}):
        lines += ["", *remarks]
    return "\n".join(lines) + "\n"


def table(planned: Sequence[Planned], receipts: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of accuracies (ours in bold if above the published one), or of recall."""
    if is_retrieval(receipts[planned[0].name]):
        return retrieval_table(planned, receipts)
    lines = [
        "| task | network | published top-1 | our top-1 | top-5 | minutes | CPU minutes | epochs | parameters |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in planned:
        m = measured(p.row, receipts[p.name])
        top1 = f"{m['top1']:.2f}"
        if m["published"] is not None and m["top1"] > m["published"]:
            top1 = f"**{top1}**"
        published = "" if m["published"] is None else f"{m['published']:.2f}"
        lines.append(
            f"| {m['task']} | {m['network']} | {published} | {top1} | {m['top5']:.2f} | {m['minutes']:.1f} | "
            f"{m['cpu_minutes']:.1f} | {m['epochs']} | {m['parameters'] / 1e6:.1f} M |"
        )
    return lines


def retrieval_table(planned: Sequence[Planned], receipts: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table with one row for each run and kind of vectors, in percent."""
    lines = [
        "| task | network | loss | vectors | Recall@1 | @2 | @4 | @8 | R@1, cosine > 0.75 | MAP@R | minutes "
        "| CPU minutes | epochs |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in planned:
        receipt = receipts[p.name]
        m = measured(p.row, receipt)
        for number, (view, values) in enumerate(views(receipt).items()):
            recall = " | ".join(f"{values[f'recall_at_{k}']:.2f}" for k in (1, 2, 4, 8))
            at_r = f"{values['map_at_r']:.2f}" if "map_at_r" in values else ""
            times = [f"{m['minutes']:.1f}", f"{m['cpu_minutes']:.1f}", str(m["epochs"])] if number == 0 else [""] * 3
            lines.append(
                f"| {m['task']} | {m['network']} | {receipt['loss']} | {view} | {recall} "
                f"| {values['threshold_recall_at_1']:.2f} | {at_r} | {' | '.join(times)} |"
            )
    return lines


def headline(name: str, receipts: dict[str, dict[str, Any]]) -> str:
    """Short table for the README: the best run of each network under any budget."""
    study = studies.load(name)
    lines = ["| task | network | published top-1 | our top-1 | minutes | on |", "|---|---|---:|---:|---:|---|"]
    for number in range(len(study.rows)):
        runs = [studies.plan(study, budget)[number] for budget in study.budgets]
        if done := [p for p in runs if p.name in receipts]:
            best = max(done, key=lambda p: float(receipts[p.name]["results"]["top1"]))
            m, receipt = measured(best.row, receipts[best.name]), receipts[best.name]
            published = "" if m["published"] is None else f"{m['published']:.2f}"
            lines.append(
                f"| {m['task']} | {m['network']} | {published} | {m['top1']:.2f} | {m['minutes']:.0f} "
                f"| {hardware(receipt)}, {receipt['date'][:10]} |"
            )
    return "\n".join(lines)


def retrieval_headline(name: str, receipts: dict[str, dict[str, Any]]) -> str:
    """Short table of a retrieval study for the README: each finished run by each kind of vectors."""
    study = studies.load(name)
    lines = ["| task | network | vectors | Recall@1 | @8 | minutes | on |", "|---|---|---|---:|---:|---:|---|"]
    for p in (p for budget in study.budgets for p in studies.plan(study, budget) if p.name in receipts):
        receipt = receipts[p.name]
        m, found = measured(p.row, receipt), views(receipt)
        for view in found:
            recall = " | ".join(f"{found[view][f'recall_at_{k}']:.2f}" for k in (1, 8))
            lines.append(
                f"| {m['task']} | {m['network']} | {view} | {recall} | {m['minutes']:.0f} "
                f"| {hardware(receipt)}, {receipt['date'][:10]} |"
            )
    return "\n".join(lines)


def hardware(receipt: dict[str, Any]) -> str:
    """The GPU of a run, or its CPU and the number of cores used."""
    machine = receipt["hardware"]
    if machine["gpu"]:
        return str(machine["gpu"])
    used = receipt["threads"] * receipt["processes"]
    cores = f"{used} of {machine['cores']} cores" if used < machine["cores"] else counted(machine["cores"], "core")
    return f"{cores} of {machine['cpu']}"


def commit(receipt: dict[str, Any]) -> str:
    """The shortened commit of a run, with its "+dirty"."""
    mark, plus, dirty = receipt["commit"].partition("+")
    return f"{mark[:9]}{plus}{dirty}"


def write_page(path: Path) -> None:
    """Write the page from the receipts in `receipts/` next to it."""
    atomic_write(path, whole_page(read_receipts(path.parent / "receipts")))
