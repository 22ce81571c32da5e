"""The results page: tables in Markdown, written from receipts and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import InputError, counted
from lookalike.files import atomic_write
from lookalike.reproduce import study as studies
from lookalike.reproduce.study import Planned, Study, is_retrieval, measured, views

ABOUT = 2  # lines of a study without any receipt
HEAD = """# Results

Written by `lookalike reproduce` from the receipts in `receipts/`; no number here was typed. How they were measured:
[Protocols](protocols.md). One run of a network is one number with one seed, not a comparison: networks less than about
a point apart are not told apart here. How fast training, metrics and the gallery are: [Benchmarks](benchmarks.md).
"""


def read_receipts(folder: Path) -> dict[str, dict[str, Any]]:
    """All receipts in a folder, by the name of their run.

    Raises:
        InputError: one of them is not JSON, or holds no results.
    """
    receipts = {}
    for path in sorted(folder.glob("*.json")):
        try:
            receipts[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            if "results" not in receipts[path.stem]:
                raise ValueError("no results in it")
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a receipt ({error}).", "Delete it and reproduce the run.") from None
    return receipts


def page(name: str, receipts: dict[str, dict[str, Any]]) -> str:
    """The whole page with one study on it."""
    return "\n".join([HEAD, *part(name, receipts)])


def whole_page(receipts: dict[str, dict[str, Any]]) -> str:
    """The page with every study that has a receipt, the demo aside, which is no measurement of anything."""
    by_task = sorted(studies.names(), key=lambda name: studies.load(name).rows[0].task)
    parts = [part(name, receipts) for name in by_task if name != "demo"]
    return "\n".join([HEAD, *(line for lines in parts if len(lines) > ABOUT for line in lines)])


def part(name: str, receipts: dict[str, dict[str, Any]]) -> list[str]:
    """A study: what it is, and one section for each budget that has a receipt."""
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
    """The table of one budget, with how it came about below it."""
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
    """Lines of a Markdown table: published against ours, top-1 bold where it is above the published one; or recall."""
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
    """Lines of a Markdown table: a line for each kind of vector of each run, in percent."""
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
    """The short table for a README: the best run of each network, whatever its budget."""
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
    """The short table of a study of retrieval for a README: each finished run by each kind of its vectors."""
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
    """The machine in a few words: its GPU, or how many of its cores the run computed on."""
    machine = receipt["hardware"]
    if machine["gpu"]:
        return str(machine["gpu"])
    used = receipt["threads"] * receipt["processes"]
    cores = f"{used} of {machine['cores']} cores" if used < machine["cores"] else counted(machine["cores"], "core")
    return f"{cores} of {machine['cpu']}"


def commit(receipt: dict[str, Any]) -> str:
    """The commit, shortened, with what is said about it."""
    mark, plus, dirty = receipt["commit"].partition("+")
    return f"{mark[:9]}{plus}{dirty}"


def write_page(path: Path) -> None:
    """Write the page at `path` from `receipts/` beside it."""
    atomic_write(path, whole_page(read_receipts(path.parent / "receipts")))
