"""`lookalike reproduce` and `lookalike demo`: whole studies, with a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lookalike.run import Run
    from lookalike.training.study import Planned

Root = Annotated[Path, typer.Option("--root", help="Folder of all runs.")]


def reproduce(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="What to reproduce: tiny-imagenet.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to every recipe.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for each network: 30m, 2h or full.")] = "30m",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this network, such as resnet18; may be repeated.")
    ] = None,
    root: Root = Path("runs"),
    page: Annotated[Path, typer.Option("--page", help="The results page to write; receipts go beside it.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Train the networks of a published table and set your numbers beside it. Give the command again to go on."""
    from lookalike.training import results, study

    planned = study.plan(study.load(name), budget, overrides or [], only or [])

    def finished(p: Planned, run: Run) -> None:
        study.keep_receipt(run, page.parent / "receipts")
        results.write_page(name, page)

    runs = _train(planned, root, finished)
    _show(planned, runs)
    typer.echo(f"written  {page}")


def demo(root: Root = Path("runs")) -> None:
    """See the whole thing work: three networks on built-in pictures, in a few minutes on two cores."""
    from lookalike.training import study

    planned = study.plan(study.load("demo"), "demo")
    runs = _train(planned, root, None)
    _show(planned, runs)
    best = max(runs, key=lambda run: float(run.receipt()["results"]["top1"]))
    typer.echo(
        f"""
Look at   {best.report_path}

Next:
  lookalike train demo --data my-pictures --name mine     your own pictures, one folder per class
  lookalike data get tiny-imagenet                        200 classes of photographs
  lookalike predict {best.model_dir} picture.png    what is this?"""
    )


def _train(planned: list[Planned], root: Path, finished: Any) -> list[Run]:
    from rich.console import Console

    from lookalike.cli.progress import watching
    from lookalike.training import study

    with watching(Console(stderr=True)) as watch:
        return study.reproduce(planned, root=root, watch=watch, finished=finished)


def _show(planned: list[Planned], runs: list[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lookalike.training.study import measured

    table = Table("task", "network", title_justify="left")
    compared = any(p.row.published is not None for p in planned)
    for heading in ("published", "top-1", "top-5", "minutes", "parameters"):
        if compared or heading != "published":
            table.add_column(heading, justify="right")
    for p, run in zip(planned, runs, strict=True):
        m = measured(p.row, run.receipt())
        published = [f"{m['published']:.2f} %" if m["published"] is not None else ""] if compared else []
        cells = [f"{m['top1']:.2f} %", f"{m['top5']:.2f} %", f"{m['minutes']:.1f}", f"{m['parameters'] / 1e6:.1f} M"]
        table.add_row(m["task"], m["network"], *published, *cells)
    Console().print(table)
