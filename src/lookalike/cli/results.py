"""How results are said: a run in a few lines, and the words that several commands share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lookalike.cli.console import echo

if TYPE_CHECKING:
    from lookalike.run import Run

TOP = 5  # of so few classes, the top 5 are all of them


def leads() -> bool:
    """Whether we are the one process that prints: the first that `torchrun` started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def print_run(run: Run) -> None:
    """What came out of a finished run and where to look; only the leading process of several speaks."""
    if not leads():
        return
    receipt = run.receipt()
    results, data = receipt["results"], receipt["data"]
    flip = ", flip averaged" if results["flip"] else ""
    if "card" in results:
        how = f"{data['name']} by {results['card']['protocol']}{flip}, {results['image_size']} px"
        echo(f"{recalls(results['view'], results)}  ({how})")
    else:
        top5 = f"  top-5 {results['top5']:.2%}" if data["classes"] > TOP else ""
        how = f"{data['name']} {results['split']}, single crop{flip}, {results['image_size']} px"
        echo(f"top-1 {results['top1']:.2%}{top5}  ({how})")
    if copies := data.get("copies"):
        echo(f"{results['split']}: {copies['sentence']}")
    if reason := results.get("temperature_remark"):
        echo(not_fitted(reason))
    if data["remark"]:
        echo(data["remark"])
    echo(f"trained {receipt['seconds'] / 60:.1f} min on {receipt['device']}, seed {receipt['seed']}")
    echo(f"report  {run.report_path}\nmodel   {run.model_dir}")


def not_fitted(reason: str) -> str:
    """What is said of a temperature that the validation images could not tell."""
    return f"temperature 1, not fitted: {reason}"


def recalls(what: str, numbers: dict[str, Any]) -> str:
    """Recall at 1, 2, 4 and 8 of some vectors in a line."""
    return f"{what}: " + "  ".join(f"Recall@{k} {numbers[f'recall_at_{k}']:.2%}" for k in (1, 2, 4, 8))
