"""A study: several recipes trained one after the other, their results beside published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lookalike import recipe as recipes
from lookalike.errors import InputError, nearest
from lookalike.files import atomic_write, partial_path
from lookalike.recipe import Recipe, Section
from lookalike.run import Run
from lookalike.training import run as fit
from lookalike.training.distributed import join

STUDIES = Path(__file__).parent / "studies"


class StudyRow(Section):
    """One run of a study. `recipe` is the name of a shipped recipe, with "{budget}" where the budget stands; `key`
    tells runs of one network apart; `start` is the run "STUDY/BUDGET/NETWORK" whose model the weights come from;
    `published` is top-1 accuracy in percent.
    """

    task: str
    network: str
    recipe: str
    key: str = ""
    start: str = ""
    overrides: tuple[str, ...] = ()
    published: float | None = None


class Study(Section):
    """What is trained, and what each budget means."""

    title: str
    about: str
    budgets: dict[str, str]
    rows: tuple[StudyRow, ...]


@dataclass(frozen=True)
class Planned:
    """A row with its budget: which recipe, under which name; `changed` where the recipe is not the study's own; the run
    that it starts from, if any.
    """

    row: StudyRow
    recipe: Recipe
    name: str
    changed: bool = False
    start: Planned | None = None

    @property
    def key(self) -> str:
        """What `only` calls it."""
        return self.row.key or self.recipe.model.name


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

    A recipe that overrides change is not the study's any more: its run has a name of its own, the plain one with
    `-changed-` and eight hex digits of the recipe's SHA-256, so that the same changes find their run again.

    Args:
        study: what to train.
        budget: one of its budgets.
        overrides: `key=value` changes for every recipe.
        only: keep these networks (names of models, such as "resnet18", or keys of rows); all when empty.

    Raises:
        InputError: no such budget or network, or a bad override.
    """
    if budget not in study.budgets:
        raise InputError(
            f"'{study.title}' has no budget '{budget}'.{nearest(budget, study.budgets)}",
            f"There are {', '.join(study.budgets)}.",
        )
    planned = [_planned(study, row, budget, overrides) for row in study.rows]
    known = list(dict.fromkeys(word for p in planned for word in (p.key, p.recipe.model.name)))
    for network in only:
        if network not in known:
            raise InputError(
                f"this study has no network '{network}'.{nearest(network, known)}", f"It has {', '.join(known)}."
            )
    keys = {p.key for p in planned}
    return [p for p in planned if not only or p.key in only or p.recipe.model.name in set(only) - keys]


def plan_recipe(name: str, overrides: Sequence[str] = ()) -> list[Planned]:
    """The runs of all studies by one shipped recipe, in order: one, or several that differ by what their rows change.

    Args:
        name: of a recipe, such as "tiny_imagenet/record/20m/weave".
        overrides: `key=value` changes.

    Raises:
        InputError: no study has such a recipe, or a bad override.
    """
    rows = [(its, row, budget) for its in map(load, names()) for budget in its.budgets for row in its.rows]
    if found := [entry for entry in rows if entry[1].recipe.format(budget=entry[2]) == name]:
        return [_planned(*entry, overrides) for entry in found]
    known = {row.recipe.format(budget=budget) for _, row, budget in rows}
    raise InputError(f"no study has a recipe '{name}'.{nearest(name, known)}", "'lookalike recipes' lists them.")


def _planned(study: Study, row: StudyRow, budget: str, overrides: Sequence[str] = ()) -> Planned:
    """One row, and what it starts from."""
    name = row.recipe.format(budget=budget)
    recipe = recipes.load(name, [*row.overrides, *overrides])
    changed = bool(overrides) and recipe != recipes.load(name, row.overrides)
    parts = [slug(study), (row.key or recipe.model.name).replace("/", "-")]
    if len(study.budgets) > 1:
        parts.insert(1, budget)
    if changed:
        parts += ["changed", hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:8]]
    return Planned(row, recipe, "-".join(parts), changed, _start(row.start) if row.start else None)


def _start(words: str) -> Planned:
    """The run "STUDY/BUDGET/NETWORK" that a row starts from.

    Raises:
        InputError: there is no such run.
    """
    name, budget, key = words.split("/")
    study = load(name)
    for row in study.rows:
        if key in (row.key, recipes.load(row.recipe.format(budget=budget), row.overrides).model.name):
            return _planned(study, row, budget)
    raise InputError(f"start: '{name}' has no network '{key}'.", "Mend the study.")


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
    """Train what is planned, and before it what it starts from. Runs that are finished are kept, one that was stopped
    goes on.

    Of several processes, the leading one speaks and calls `finished`.

    Args:
        planned: from `plan`.
        root: the folder of all runs.
        watch: who is told how it goes.
        finished: called after each run.

    Raises:
        InputError: as `fit.fit` does; also when what is there under a run's name is no run, or has another recipe.
    """
    watch = watch or fit.Watch()
    runs = []
    for number, p in enumerate(planned, 1):
        world = join(p.recipe.training.device)
        watch = watch if world.leads else fit.Watch()
        run = Run(root / p.name)
        recipe = starting_from(p, root, run)
        watch.say(f"{number} of {len(planned)}: {p.row.network}")
        if world.in_turn(partial(is_finished, run, recipe)):
            watch.say(f"{run.path} is finished and kept")
        else:
            if p.start and not p.recipe.model.init and not run.exists:
                world.in_turn(partial(fit.read_material, p.recipe))  # what is missing is said before hours have gone by
                watch.say(f"first what it starts from: {p.start.row.network}")
                reproduce([p.start], root=root, watch=replace(watch, stage=None), finished=finished)
            run = fit.fit(recipe, root=root, name=p.name, resume=True, watch=watch)
        runs.append(run)
        if finished:
            world.in_turn(partial(finished, p, run) if world.leads else lambda: None)
    return runs


def starting_from(p: Planned, root: Path, run: Run) -> Recipe:
    """The recipe with the model to start from. A run that is there keeps the path that it began with: the folder of
    all runs may have been moved, or be called otherwise now.
    """
    if p.start is None or p.recipe.model.init:
        return p.recipe

    def starts(init: str) -> Recipe:
        return p.recipe.model_copy(update={"model": p.recipe.model.model_copy(update={"init": init})})

    if run.recipe_path.is_file() and run.recipe.does_as(former := starts(run.recipe.model.init)):
        return former
    return starts(Run(root / p.start.name).model_dir.as_posix())


def is_finished(run: Run, recipe: Recipe) -> bool:
    """Whether a run has its receipt; one that is not there, or was stopped, has none.

    Raises:
        InputError: it has another recipe, or the folder is there and is no run.
    """
    remedy = "Delete or rename this folder, or choose another --root."
    if run.recipe_path.is_file():
        if not run.recipe.does_as(recipe):
            raise InputError(f"{run.path}: {fit.difference(run.recipe, recipe)}.", remedy)
    elif run.path.is_dir() and {path.name for path in run.path.iterdir()} - {partial_path(run.recipe_path).name}:
        raise InputError(f"{run.path}: this folder exists and is not a run.", remedy)
    return run.receipt_path.is_file()


def keep_receipt(run: Run, folder: Path) -> None:
    """Copy a run's receipt to `folder/NAME.json`, beside the page that is written from it."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{run.path.name}.json", run.receipt_path.read_bytes())


def measured(row: StudyRow, receipt: dict[str, Any]) -> dict[str, Any]:
    """What a table says of any run: what it is, minutes, circumstances; of recognition accuracies in percent."""
    results = receipt["results"]
    accuracies = {key: 100 * results[key] for key in ("top1", "top5") if key in results}
    return {
        "task": row.task,
        "network": row.network,
        "published": row.published,
        **accuracies,
        "minutes": receipt["seconds"] / 60,
        "cpu_minutes": receipt["cpu_seconds"] / 60,
        "parameters": receipt["parameters"],
        "seed": receipt["seed"],
        "epochs": receipt["epochs"],
    }


def is_retrieval(receipt: dict[str, Any]) -> bool:
    """Whether a run was measured by a protocol of retrieval."""
    return "recall_at_1" in receipt["results"]


def views(receipt: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a run of retrieval was measured on, the model's own vectors first: their numbers by name, in percent."""
    results = receipt["results"]
    return {
        name: {key: 100 * value for key, value in numbers.items() if isinstance(value, float)}
        for name, numbers in {results["view"]: results, **results["views"]}.items()
    }
