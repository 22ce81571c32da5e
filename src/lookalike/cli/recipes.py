"""`lookalike recipes`: what there is to train, and each recipe in full."""

from __future__ import annotations

from typing import Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this recipe, resolved. A name or a .yaml file.", autocompletion=completion.recipes),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes, such as training.epochs=3.", autocompletion=completion.overrides
        ),
    ] = None,
) -> None:
    """List the recipes that come with Lookalike, or print one with every key and value."""
    from lookalike import recipe

    if name is not None:
        echo(recipe.load(name, overrides or []).to_yaml(), end="")
        return
    names = recipe.shipped()
    width = max(map(len, names), default=0)
    for shipped in names:
        echo(f"{shipped:<{width}}  {recipe.load(shipped).about}".rstrip())
