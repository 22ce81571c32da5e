"""A study: several recipes trained one after the other, their results beside published ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike import recipe as recipes
from lookalike.errors import InputError, nearest
from lookalike.recipe import Recipe, Section
from lookalike.run import Run
from lookalike.training import fit

STUDIES = Path(__file__).parent.parent / "studies"


class Row(Section):
    """One network of a study. `recipe` is the name of a shipped recipe, with "{budget}" where the budget stands;
    `published` is top-1 accuracy in percent.
    """

    task: str
    network: str
    recipe: str
    overrides: tuple[str, ...] = ()
    published: float | None = None


class Study(Section):
    """What is trained, and what each budget means."""

    title: str
    about: str
    budgets: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Planned:
    """A row with its budget: which recipe, under which name."""

    row: Row
    recipe: Recipe
    name: str


def names() -> list[str]:
    """The studies in the package, sorted."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load(name: str) -> Study:
    """A study of the package.

    Raises:
        InputError: there is none of that name.
    """
    if name not in names():
        raise InputError(f"no study named '{name}'.{nearest(name, names())}", f"There are {', '.join(names())}.")
    text = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8")
    return recipes.validate(Study, recipes.parse_yaml(text, name), name)


def plan(study: Study, budget: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Planned]:
    """The runs of a study under a budget, in order.

    Args:
        study: what to train.
        budget: one of its budgets.
        overrides: `key=value` changes for every recipe.
        only: keep these networks (names of models, such as "resnet18"); all when empty.

    Raises:
        InputError: no such budget or network, or a bad override.
    """
    if budget not in study.budgets:
        raise InputError(
            f"'{study.title}' has no budget '{budget}'.{nearest(budget, study.budgets)}",
            f"There are {', '.join(study.budgets)}.",
        )
    planned = []
    for row in study.rows:
        name = row.recipe.format(budget=budget)
        recipe = recipes.load(name, [*row.overrides, *overrides])
        short = recipe.model.name.replace("/", "-")
        planned.append(
            Planned(
                row, recipe, f"{slug(study)}-{budget}-{short}" if len(study.budgets) > 1 else f"{slug(study)}-{short}"
            )
        )
    known = [p.recipe.model.name for p in planned]
    for network in only:
        if network not in known:
            raise InputError(
                f"this study has no network '{network}'.{nearest(network, known)}", f"It has {', '.join(known)}."
            )
    return [p for p in planned if not only or p.recipe.model.name in only]


def slug(study: Study) -> str:
    """The study's title as part of a run's name."""
    return study.title.lower().replace(" ", "_")


def reproduce(
    planned: Sequence[Planned],
    *,
    root: Path,
    watch: fit.Watch | None = None,
    finished: Callable[[Planned, Run], None] | None = None,
) -> list[Run]:
    """Train what is planned. Runs that are finished are kept, one that was stopped goes on.

    Args:
        planned: from `plan`.
        root: the folder of all runs.
        watch: who is told how it goes.
        finished: called after each run.

    Raises:
        InputError: as `fit.fit` does; also when a run of that name has another recipe.
    """
    watch = watch or fit.Watch()
    runs = []
    for number, p in enumerate(planned, 1):
        watch.say(f"{number} of {len(planned)}: {p.row.network}")
        run = Run(root / p.name)
        if run.receipt_path.is_file() and run.recipe == p.recipe:
            watch.say(f"{run.path} is finished and kept")
        else:
            run = fit.fit(p.recipe, root=root, name=p.name, resume=True, watch=watch)
        runs.append(run)
        if finished:
            finished(p, run)
    return runs


def keep_receipt(run: Run, folder: Path) -> None:
    """Copy a run's receipt to `folder/NAME.json`, beside the page that is written from it."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{run.path.name}.json.partial"
    shutil.copyfile(run.receipt_path, beside)
    beside.replace(folder / f"{run.path.name}.json")


def measured(row: Row, receipt: dict[str, Any]) -> dict[str, Any]:
    """What a table says about a run: accuracies in percent, minutes, and the circumstances."""
    results = receipt["results"]
    return {
        "task": row.task,
        "network": row.network,
        "published": row.published,
        "top1": 100 * results["top1"],
        "top5": 100 * results["top5"],
        "minutes": receipt["seconds"] / 60,
        "cpu_minutes": receipt["cpu_seconds"] / 60,
        "parameters": receipt["parameters"],
        "seed": receipt["seed"],
        "epochs": receipt["epochs"],
    }
