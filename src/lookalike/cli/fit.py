"""`lookalike fit`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import completion
from lookalike.errors import InputError


class Classifier(StrEnum):
    """Choices of --classifier."""

    auto = "auto"
    logistic = "logistic"
    prototypes = "prototypes"


def fit(
    data: Annotated[
        str | None,
        typer.Argument(
            help="Fit to this: a folder with one folder per class, a zip, CSV or Parquet file, a data set's name.",
            autocompletion=completion.data,
        ),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="GALLERY",
            help="Fit to the labelled items of a gallery, without reading their files if --model is its model.",
            autocompletion=completion.galleries,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model whose features are used: a model folder or Hub id; by default the one in the package, or the "
            "gallery's.",
            autocompletion=completion.models,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/fit.")] = None,
    classifier: Annotated[
        Classifier,
        typer.Option(
            "--classifier",
            help="Logistic regression, or the class whose mean is nearest; auto: the latter if a class has fewer than "
            "five images.",
        ),
    ] = Classifier.auto,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Whether a mirrored image is of the same class.")
    ] = True,
    skip_undecodable: Annotated[
        bool, typer.Option("--skip-undecodable", help="Leave out images that cannot be decoded.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the cross-validation.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Make a classifier of your own images in seconds, with the features of a trained model.

    A few images per class are enough, from two on. The result is a run folder with model, report and receipt, as
    'lookalike train' writes it. The report is by cross-validation, unless the data have a validation split.
    """
    if (data is None) == (gallery is None):
        raise InputError("give either DATA or --from GALLERY.", "For example: lookalike fit pets/ --out runs/pets")
    from rich.console import Console

    from lookalike.cli.console import print_run, training_progress
    from lookalike.training.fit import fit

    with training_progress(Console(stderr=True)) as callbacks:
        options = {
            "model": model,
            "out": out,
            "classifier": classifier.value,
            "mirror": mirror,
            "skip_undecodable": skip_undecodable,
            "seed": seed,
            "device": device,
            "callbacks": callbacks,
        }
        if gallery is None:
            run = fit(str(data), **options)  # type: ignore[arg-type]
        else:
            from lookalike.gallery.gallery import Gallery

            with Gallery.open(gallery) as opened:
                run = fit(opened.labelled(), **options)  # type: ignore[arg-type]
    print_run(run)
