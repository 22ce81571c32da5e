"""Shell completion for recipes and their keys, data sets, studies, models and galleries.

Each function takes the incomplete word and returns its completions. If there are none, the shell completes file names.
This module imports only modules that load quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from lookalike.recipe import Section

PACKAGE = Path(__file__).parent.parent
RUNS = "runs"  # default folder for runs
MODEL_HELP = "Model folder, imported model, timm/NAME or Hub id."

Offer = tuple[str, str]  # a word and its description; zsh and fish show the description


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a built-in recipe."""
    from lookalike.recipe import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def overrides(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Complete `key=` for the keys of a recipe; after the `=`, complete the allowed values or the current value."""
    given = [str(word) for word in ctx.params.get("overrides") or []]
    values = dict(_keys(ctx.params.get("name")))
    # Bash treats "=" as a separate word (typer removes it if it is the last one) and completes the text after it
    if not incomplete and given and given[-1] in values:
        return _values(values, given[-1], "", "")
    if len(given) > 1 and given[-1] == "=":
        return _values(values, given[-2], "", incomplete)
    key, equals, text = incomplete.partition("=")
    if equals:
        return _values(values, key, f"{key}=", text)
    found = [(f"{known}=", f"now {_written(value)}") for known, (value, _) in values.items() if known.startswith(key)]
    if len(found) == 1:  # with a second word, the shell does not move to the next argument
        known = found[0][0].removesuffix("=")
        return found + _values(values, known, f"{known}=", "")
    return found


def data(incomplete: str) -> list[str]:
    """Complete the name of an installed data set."""
    from lookalike.data.registry import data_home, installed

    home = data_home()
    there = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
    names = ["builtin", *(name for name in there if installed(name))]
    return [name for name in names if name.startswith(incomplete)]


def data_to_get(incomplete: str) -> list[str]:
    """Complete the name of a data set that can be downloaded."""
    from lookalike.data.registry import DATASETS

    return [name for name, spec in DATASETS.items() if spec.mirrors and name.startswith(incomplete)]


def studies(incomplete: str) -> list[str]:
    """Complete the name of a study."""
    names = sorted(path.stem for path in (PACKAGE / "reproduce" / "studies").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Complete "default", the name of an imported model, or the model folder of a run."""
    from lookalike.models.locate import imported

    folders = sorted(path.parent.as_posix() for path in Path(RUNS).glob("*/model/config.json"))
    return [name for name in ["default", *imported(), *folders] if name.startswith(incomplete)]


def galleries(incomplete: str) -> list[str]:
    """Complete the path of a gallery in the given folder or in a run."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = {*folder.glob("*/gallery.db"), *Path(RUNS).glob("*/*/gallery.db")}
    names = sorted(path.parent.as_posix() for path in found)
    return [name for name in names if name.startswith(incomplete)]


def _keys(recipe: str | None) -> Iterator[tuple[str, tuple[Any, list[str]]]]:
    """Yield every key of a recipe with its value and its allowed values; the latter are empty if it is not a choice."""
    from lookalike.errors import InputError
    from lookalike.recipe import Recipe, load

    try:
        whole = load(recipe) if recipe else Recipe()
    except InputError:
        whole = Recipe()
    yield from _leaves(whole, "")


def _leaves(section: Section, prefix: str) -> Iterator[tuple[str, tuple[Any, list[str]]]]:
    from lookalike.recipe import Section

    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
            continue
        few: list[str] = []
        if field.annotation is bool:
            few = ["true", "false"]
        elif get_origin(field.annotation) is Literal:
            few = [str(choice) for choice in get_args(field.annotation)]
        yield f"{prefix}{name}", (value, few)


def _values(known: dict[str, tuple[Any, list[str]]], key: str, before: str, text: str) -> list[Offer]:
    if key not in known:
        return []
    value, few = known[key]
    return [(f"{before}{word}", "") for word in few or [_written(value)] if word and word.startswith(text)]


def _written(value: Any) -> str:
    """Format a value as it is written after "="."""
    import yaml

    if value in ("", None):
        return ""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
