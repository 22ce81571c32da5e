"""How results are shown: a run in a few lines, several in a table."""

from __future__ import annotations

import os

import typer

from lookalike.run import Run


def print_run(run: Run) -> None:
    """What came out of a finished run and where to look; only the leading process of several speaks."""
    if int(os.environ.get("RANK", "0")):
        return
    receipt = run.receipt()
    results = receipt["results"]
    how = f"{results['split']}, single crop{', flip averaged' if results['flip'] else ''}, {results['image_size']} px"
    typer.echo(f"top-1 {results['top1']:.2%}  top-5 {results['top5']:.2%}  ({receipt['data']['name']} {how})")
    if receipt["data"]["remark"]:
        typer.echo(receipt["data"]["remark"])
    typer.echo(f"trained {receipt['seconds'] / 60:.1f} min on {receipt['device']}, seed {receipt['seed']}")
    typer.echo(f"report  {run.report_path}\nmodel   {run.model_dir}")
