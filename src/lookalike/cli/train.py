"""`lookalike train`."""

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
            help="A shipped recipe ('lookalike recipes' lists them) or a .yaml file.",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the recipe, such as training.epochs=3.",
            autocompletion=completion.overrides,
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in this folder where it stopped.")] = False,
    keep_checkpoint: Annotated[
        bool, typer.Option("--keep-checkpoint", help="Keep the training state when the run is finished.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into the run's events/.")
    ] = False,
) -> None:
    """Train a network, measure it, and write model, report and receipt into a run folder."""
    from rich.console import Console

    from lookalike import recipe as recipes
    from lookalike.cli.console import print_run, training_progress

    recipe = recipes.load(name, overrides or [])  # before PyTorch is loaded, so that mistakes show at once
    from lookalike.training.metric_logger import TensorBoardTracker
    from lookalike.training.run import default_folder, train

    out = out or default_folder(name)
    trackers = [TensorBoardTracker(out / "events")] if tensorboard else []
    with training_progress(Console(stderr=True)) as callbacks:
        run = train(
            recipe,
            data=data,
            out=out,
            resume=resume,
            keep_checkpoint=keep_checkpoint,
            trackers=trackers,
            callbacks=callbacks,
        )
    print_run(run)
