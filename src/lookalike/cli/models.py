"""`lookalike models` and `lookalike recipes`: the networks and recipes, their sizes and options; pretrained weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json
from lookalike.errors import InputError


class _Group(TyperGroup):
    """Commands on models; without the name of one, `show` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        if not ctx.resilient_parsing and (not args or args[0] not in known):  # resilient: completion asks
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="models",
    cls=_Group,
    help="List the networks, show one, or import pretrained weights. 'lookalike models NAME' shows a network.",
)


@app.command("show")
def show(
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


@app.command("import")
def import_(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS",
            help="File of weights (.pth, .safetensors), a folder or Hub id in the format of timm or open_clip, or "
            "timm/NAME.",
            show_default=False,
        ),
    ],
    architecture: Annotated[
        str | None,
        typer.Option("--as", metavar="NETWORK", help="timm/NAME: the network that a file is for; or open_clip."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Short name, for --model.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the model folder here instead.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=8, max=1024, help="Side of the images in pixels.")] = None,
    mean: Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Mean of the channels, 0 to 1.")] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation of the channels, 0 to 1.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Text file with one class name on each line.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the weights, for the card.")] = None,
) -> None:
    """Import pretrained weights, with their preprocessing, as a model folder: of timm (with class names), or CLIP's.

    A .pth file is read once, without running code in it, and kept as safetensors. What is not given is taken from timm:
    image size, mean, standard deviation, crop, interpolation, and the class names of ImageNet. A pair of an image and
    a text tower in the format of open_clip (CLIP, SigLIP) keeps its tokenizer, and images can be searched with words.
    """
    from lookalike.models.importing import import_model

    to = name if out is None else out
    if to is None or (name is not None and out is not None):
        raise InputError("one of --name and --out is needed.", "--name NAME makes it available as --model NAME.")
    made = import_model(
        weights,
        to,
        architecture=architecture,
        size=size,
        mean=_channels(mean, "--mean"),
        std=_channels(std, "--std"),
        class_names=None if classes is None else _lines(classes),
        license=license_,
    )
    for remark in made.remarks:
        echo(f"note: {remark}", err=True)
    config = made.config
    named = f" of {config.dataset}" if config.dataset else ""
    what = f"{config.num_classes:,} classes{named}" if config.num_classes else "no classes"
    echo(f"{made.folder}: {config.name}, {config.image_size} × {config.image_size} pixels, {what}")
    use = (
        f"lookalike predict IMAGE --model {to}"
        if config.num_classes
        else f"lookalike embed IMAGE --out FOLDER --model {to}"
    )
    echo(f"Next: {use}, or: lookalike gallery create NAME.gallery --model {to}")


def _channels(text: str | None, option: str) -> tuple[float, float, float] | None:
    """Three numbers separated by commas; one number stands for three.

    Raises:
        InputError: neither.
    """
    if text is None:
        return None
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise InputError(f"{option} {text}: not three numbers.", f"Write {option} 0.485,0.456,0.406")
    red, green, blue = values * 3 if len(values) == 1 else values
    return red, green, blue


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).", "Give a text file, one class on each line.") from None


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
    from lookalike.models.locate import imported

    if names := imported():
        echo(f"\nImported models, for --model: {', '.join(names)}")
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
