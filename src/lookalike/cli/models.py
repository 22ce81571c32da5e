"""`lookalike models` and `lookalike recipes`: the networks and recipes, their sizes and options."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json


def models(
    name: Annotated[str | None, typer.Argument(help="Show this network with its options.")] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=1024, help="Side of the images in pixels.")] = 64,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Outputs of the classifier.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the networks with their parameters and operations per image, or show the options of one."""
    from lookalike.models.registry import NETWORKS

    described = [_describe(each, size, classes) for each in ([name] if name else NETWORKS)]
    if as_json:
        found = {"size": size, "classes": classes, "networks": described}
        print_json(described[0] if name else found)
    elif name:
        _print_one(described[0], size, classes)
    else:
        _print_table(described, size, classes)


def _describe(name: str, size: int, classes: int) -> dict[str, Any]:
    from lookalike.models.profile import profile_of
    from lookalike.models.registry import NETWORKS, options_of

    profile = profile_of(name, size=size, num_classes=classes)
    options = options_of(name) if name in NETWORKS else {"pretrained": False}
    return {"name": name, "parameters": profile.parameters, "flops": profile.flops, "options": options}


def _print_table(described: list[dict[str, Any]], size: int, classes: int) -> None:
    echo(f"{'network':<16}{'parameters':>12}{'GFLOPs':>9}   at {size} × {size} pixels, {classes} classes")
    for each in described:
        echo(f"{each['name']:<16}{each['parameters']:>12,}{each['flops'] / 1e9:>9.3f}")
    from lookalike.extras import install_command

    needs = f", with: {install_command('timm')}" if find_spec("timm") is None else ""
    echo(f"timm/NAME       any timm backbone{needs}")
    echo("\nA multiply-add is two operations. 'lookalike models NAME' shows the options of one.")


def _print_one(each: dict[str, Any], size: int, classes: int) -> None:
    echo(f"{each['name']}: {each['parameters']:,} parameters at {classes} classes,")
    echo(f"{each['flops'] / 1e9:.3f} GFLOPs at {size} × {size} pixels (a multiply-add is two operations)\n")
    echo("options, with their defaults:")
    for key, default in each["options"].items():
        echo(f"  model.options.{key}={json.dumps(default)}")
    if each["name"].startswith("timm/"):
        echo("  and the keyword arguments of the architecture in timm")


# `lookalike recipes`


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
