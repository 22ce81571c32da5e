"""`lookalike reproduce`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import TOP, echo, is_main_process
from lookalike.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from lookalike.reproduce.study import Planned
    from lookalike.run import Run

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs.")]


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="tiny-imagenet, tiny-imagenet-record, tiny-imagenet-seeds, cars196, cars196-losses or cars196-seeds.",
            autocompletion=completion.studies,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to all recipes; the results page leaves such runs out.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Training time of each network, such as 30m, 2h or full; by default the shortest."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this network, such as resnet18; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="In place of a study: all runs of the studies with this recipe.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    out: Out = Path("runs"),
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", help="The results page; receipts go into receipts/ next to it. Default: results.md in --out."
        ),
    ] = None,
) -> None:
    """Train the networks of a study and compare with published results. Run the command again to continue."""
    from lookalike.reproduce import results_page, study

    words = ([name] if name else []) + (overrides or [])
    if recipe is not None:
        if stray := [word for word in words if "=" not in word] + ["--budget"] * bool(budget) + ["--only"] * bool(only):
            raise InputError(f"--recipe cannot be combined with '{stray[0]}'.", "Leave one of them out.")
        planned = study.plan_recipe(recipe, words)
    elif name:
        wanted = study.load(name)
        planned = study.plan(wanted, budget or next(iter(wanted.budgets)), overrides or [], only or [])
    else:
        raise InputError("no study is given.", f"Name one ({', '.join(study.names())}), or give a --recipe.")
    page = page or out / "results.md"

    def finished(p: Planned, run: Run) -> None:
        if not p.changed:
            study.keep_receipt(run, page.parent / "receipts")
            results_page.write_page(page)

    runs = train(planned, out, finished)
    if not is_main_process():
        return
    show(planned, runs)
    if not all(p.changed for p in planned):
        echo(f"written  {page}")
    if changed := [run.path for p, run in zip(planned, runs, strict=True) if p.changed]:
        echo(f"not on {page}, since their recipes were changed: {', '.join(map(str, changed))}")


def train(planned: list[Planned], out: Path, finished: Callable[[Planned, Run], None] | None = None) -> list[Run]:
    """Train planned runs with progress bars; `finished` is called after each."""
    from rich.console import Console

    from lookalike.cli.console import training_progress
    from lookalike.reproduce import study

    with training_progress(Console(stderr=True)) as callbacks:
        return study.reproduce(planned, out=out, callbacks=callbacks, finished=finished)


def show(planned: list[Planned], runs: list[Run]) -> None:
    """Print a table of the classification runs and one of the retrieval runs."""
    from rich.console import Console

    from lookalike.reproduce.study import is_retrieval

    pairs = [(p, run.receipt()) for p, run in zip(planned, runs, strict=True)]
    if classified := [(p, receipt) for p, receipt in pairs if not is_retrieval(receipt)]:
        Console().print(_classification_table(classified))
    if retrieved := [(p, receipt) for p, receipt in pairs if is_retrieval(receipt)]:
        Console().print(_retrieval_table(retrieved))


def _classification_table(pairs: list[tuple[Planned, dict[str, Any]]]) -> Table:
    from rich.table import Table

    from lookalike.reproduce.study import measured

    table = Table("task", "network", title_justify="left")
    left_out = set()
    if all(p.row.published is None for p, _ in pairs):
        left_out.add("published")
    if all(receipt["data"]["classes"] <= TOP for _, receipt in pairs):
        left_out.add("top-5")
    for heading in ("published", "top-1", "top-5", "minutes", "parameters"):
        if heading not in left_out:
            table.add_column(heading, justify="right")
    for p, receipt in pairs:
        m = measured(p.row, receipt)
        cells = {
            "published": f"{m['published']:.2f} %" if m["published"] is not None else "",
            "top-1": f"{m['top1']:.2f} %",
            "top-5": f"{m['top5']:.2f} %",
            "minutes": f"{m['minutes']:.1f}",
            "parameters": f"{m['parameters'] / 1e6:.1f} M",
        }
        table.add_row(m["task"], m["network"], *(cells[heading] for heading in cells if heading not in left_out))
    return table


def _retrieval_table(pairs: list[tuple[Planned, dict[str, Any]]]) -> Table:
    from rich.table import Table

    from lookalike.reproduce.study import measured, views

    table = Table("task", "network", "vectors", title_justify="left")
    for heading in ("Recall@1", "@2", "@4", "@8", "minutes"):
        table.add_column(heading, justify="right")
    for p, receipt in pairs:
        m = measured(p.row, receipt)
        for number, (view, values) in enumerate(views(receipt).items()):
            recall = [f"{values[f'recall_at_{k}']:.1f} %" for k in (1, 2, 4, 8)]
            minutes = "" if number else f"{m['minutes']:.1f}"
            table.add_row("" if number else m["task"], "" if number else m["network"], view, *recall, minutes)
    return table
