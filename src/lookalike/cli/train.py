"""`lookalike train`: a recipe becomes a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import completion


def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A shipped recipe ('lookalike recipes') or a .yaml file.",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes, such as training.epochs=3.", autocompletion=completion.overrides
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Train on this: a data set's name, a folder, zip, CSV or Parquet file.",
            autocompletion=completion.data,
        ),
    ] = None,
    run_name: Annotated[str | None, typer.Option("--name", help="Name of the run; by default the recipe's.")] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run of this name was stopped.")] = False,
    keep_checkpoint: Annotated[
        bool, typer.Option("--keep-checkpoint", help="Leave the training state in the folder of the finished run.")
    ] = False,
) -> None:
    """Train a network, measure it, and write model, report and receipt into a run folder."""
    from rich.console import Console

    from lookalike import recipe
    from lookalike.cli.console import print_run, watching

    changes = [*(overrides or [])]
    resolved = recipe.load(name, changes)
    if data is not None:
        resolved = resolved.model_copy(update={"data": resolved.data.model_copy(update={"source": data})})
    from lookalike.training.run import fit

    console = Console(stderr=True)
    with watching(console) as watch:
        run = fit(
            resolved,
            root=root,
            name=run_name or Path(name).stem,
            resume=resume,
            keep_checkpoint=keep_checkpoint,
            watch=watch,
        )
    print_run(run)
