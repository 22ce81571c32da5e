"""`lookalike reproduce`: whole studies, with a table at the end."""

from __future__ import annotations

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

Root = Annotated[Path, typer.Option("--root", help="Folder of all runs.")]


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
            help="Changes to every recipe; kept off the page.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Time for each network: 30m, 2h, full ...; by default the least.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this network, such as resnet18; may be repeated.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="In place of a study: every run of the studies by this recipe.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    root: Root = Path("runs"),
    page: Annotated[Path, typer.Option("--page", help="The results page to write; receipts go beside it.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Train the networks of a published table and set your numbers beside it. Give the command again to go on."""
    from lookalike.reproduce import results_page, study

    words = ([name] if name else []) + (overrides or [])
    if recipe is not None:
        if stray := [word for word in words if "=" not in word] + ["--budget"] * bool(budget) + ["--only"] * bool(only):
            raise InputError(f"--recipe says what to train; '{stray[0]}' does not fit to it.", "Leave one of them out.")
        planned = study.plan_recipe(recipe, words)
    elif name:
        wanted = study.load(name)
        planned = study.plan(wanted, budget or next(iter(wanted.budgets)), overrides or [], only or [])
    else:
        raise InputError("what to reproduce is not said.", f"Name a study ({', '.join(study.names())}) or a --recipe.")

    def finished(p: Planned, run: Run) -> None:
        if not p.changed:
            study.keep_receipt(run, page.parent / "receipts")
            results_page.write_page(page)

    runs = train(planned, root, finished)
    if not is_main_process():
        return
    show(planned, runs)
    if not all(p.changed for p in planned):
        echo(f"written  {page}")
    if changed := [run.path for p, run in zip(planned, runs, strict=True) if p.changed]:
        echo(f"not on {page}, for their recipes are not the study's: {', '.join(map(str, changed))}")


def train(planned: list[Planned], root: Path, finished: Any) -> list[Run]:
    """Train what is planned, with a bar for each; `finished` is called after each."""
    from rich.console import Console

    from lookalike.cli.console import watching
    from lookalike.reproduce import study

    with watching(Console(stderr=True)) as watch:
        return study.reproduce(planned, root=root, watch=watch, finished=finished)


def show(planned: list[Planned], runs: list[Run]) -> None:
    """A table of the runs that recognise, and one of those that retrieve."""
    from rich.console import Console

    from lookalike.reproduce.study import is_retrieval

    pairs = [(p, run.receipt()) for p, run in zip(planned, runs, strict=True)]
    if recognised := [(p, receipt) for p, receipt in pairs if not is_retrieval(receipt)]:
        Console().print(_recognition_table(recognised))
    if retrieved := [(p, receipt) for p, receipt in pairs if is_retrieval(receipt)]:
        Console().print(_retrieval_table(retrieved))


def _recognition_table(pairs: list[tuple[Planned, dict[str, Any]]]) -> Table:
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
