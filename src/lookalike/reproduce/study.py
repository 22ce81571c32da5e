"""Studies: recipes that are trained one after the other, with published results to compare with."""

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
from lookalike.training.distributed import init_distributed
from lookalike.training.run import Callbacks, difference, read_data, train

STUDIES = Path(__file__).parent / "studies"


class StudyRow(Section):
    """One run of a study.

    `recipe` is the name of a shipped recipe, with "{budget}" in place of the budget; `key` distinguishes runs of the
    same network; `start` names the run "STUDY/BUDGET/NETWORK" whose model the initial weights come from; `published` is
    the published top-1 accuracy in percent.
    """

    task: str
    network: str
    recipe: str
    key: str = ""
    start: str = ""
    overrides: tuple[str, ...] = ()
    published: float | None = None


class Study(Section):
    """Runs that belong together; `budgets` says what each budget means."""

    title: str
    about: str
    budgets: dict[str, str]
    rows: tuple[StudyRow, ...]


@dataclass(frozen=True)
class Planned:
    """A run to be trained: a row of a study under one budget.

    Args:
        row: the row.
        recipe: its recipe.
        name: name of the run folder.
        changed: whether the recipe differs from the study's.
        start: the run whose model the initial weights come from, if any.
    """

    row: StudyRow
    recipe: Recipe
    name: str
    changed: bool = False
    start: Planned | None = None

    @property
    def key(self) -> str:
        """Its name in `plan(only=...)`."""
        return self.row.key or self.recipe.model.name


def names() -> list[str]:
    """Sorted names of the shipped studies."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load(name: str) -> Study:
    """Load a shipped study.

    Raises:
        InputError: there is no study of this name.
    """
    if name not in names():
        raise InputError(f"no study named '{name}'.{nearest(name, names())}", f"Known studies: {', '.join(names())}.")
    text = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8")
    return recipes.validate(Study, recipes.parse_yaml(text, name), name)


def plan(study: Study, budget: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Planned]:
    """The runs of a study under a budget, in order.

    A run with a changed recipe gets a name of its own, with `-changed-` and eight hex digits of the recipe's SHA-256,
    so that the same changes find the same run again.

    Args:
        study: the study.
        budget: one of its budgets.
        overrides: `key=value` changes to all recipes.
        only: names of models, such as "resnet18", or keys of rows; empty: all.

    Raises:
        InputError: an unknown budget or network, or a bad override.
    """
    if budget not in study.budgets:
        raise InputError(
            f"'{study.title}' has no budget '{budget}'.{nearest(budget, study.budgets)}",
            f"Its budgets: {', '.join(study.budgets)}.",
        )
    planned = [_planned(study, row, budget, overrides) for row in study.rows]
    known = list(dict.fromkeys(word for p in planned for word in (p.key, p.recipe.model.name)))
    for network in only:
        if network not in known:
            raise InputError(
                f"this study has no network '{network}'.{nearest(network, known)}", f"Its networks: {', '.join(known)}."
            )
    keys = {p.key for p in planned}
    return [p for p in planned if not only or p.key in only or p.recipe.model.name in set(only) - keys]


def plan_recipe(name: str, overrides: Sequence[str] = ()) -> list[Planned]:
    """All runs of the studies with one shipped recipe, in order; they differ by the overrides of their rows.

    Args:
        name: name of the recipe, such as "tiny_imagenet/record/20m/weave".
        overrides: `key=value` changes.

    Raises:
        InputError: no study has this recipe, or an override is bad.
    """
    rows = [(each, row, budget) for each in map(load, names()) for budget in each.budgets for row in each.rows]
    if found := [entry for entry in rows if entry[1].recipe.format(budget=entry[2]) == name]:
        return [_planned(*entry, overrides) for entry in found]
    known = {row.recipe.format(budget=budget) for _, row, budget in rows}
    raise InputError(f"no study has a recipe '{name}'.{nearest(name, known)}", "'lookalike recipes' lists them.")


def _planned(study: Study, row: StudyRow, budget: str, overrides: Sequence[str] = ()) -> Planned:
    """The run of a row, with the run that it starts from."""
    name = row.recipe.format(budget=budget)
    recipe = recipes.load(name, [*row.overrides, *overrides])
    changed = bool(overrides) and recipe != recipes.load(name, row.overrides)
    parts = [slug(study), (row.key or recipe.model.name).replace("/", "-")]
    if len(study.budgets) > 1:
        parts.insert(1, budget)
    if changed:
        parts += ["changed", hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:8]]
    return Planned(row, recipe, "-".join(parts), changed, _start(row.start) if row.start else None)


def _start(reference: str) -> Planned:
    """The run with this "STUDY/BUDGET/NETWORK".

    Raises:
        InputError: there is no such run.
    """
    name, budget, key = reference.split("/")
    study = load(name)
    for row in study.rows:
        if key in (row.key, recipes.load(row.recipe.format(budget=budget), row.overrides).model.name):
            return _planned(study, row, budget)
    raise InputError(f"start: '{name}' has no network '{key}'.", "Correct the study.")


def slug(study: Study) -> str:
    """The title of a study for use in names of runs."""
    return study.title.lower().replace(" ", "_")


def reproduce(
    planned: Sequence[Planned],
    *,
    out: Path,
    callbacks: Callbacks | None = None,
    finished: Callable[[Planned, Run], None] | None = None,
) -> list[Run]:
    """Train planned runs, and before each the run that it starts from. Finished runs are kept, stopped ones resumed.

    Of several processes, the main one calls `callbacks` and `finished`.

    Args:
        planned: the runs, from `plan`.
        out: folder of the runs.
        callbacks: told how the runs are going.
        finished: called after each run.

    Raises:
        InputError: as `training.run.train`; or the folder of a run is not a run, or has another recipe.
    """
    callbacks = callbacks or Callbacks()
    runs = []
    for number, p in enumerate(planned, 1):
        context = init_distributed(p.recipe.training.device)
        callbacks = callbacks if context.is_main_process else Callbacks()
        run = Run(out / p.name)
        recipe = with_start(p, out, run)
        callbacks.message(f"{number} of {len(planned)}: {p.row.network}")
        if context.main_process_first(partial(is_finished, run, recipe)):
            callbacks.message(f"{run.path} is finished and kept")
        else:
            if p.start and not p.recipe.model.init and not run.exists:
                context.main_process_first(partial(read_data, p.recipe))  # report bad data before training for hours
                callbacks.message(f"first the run that it starts from: {p.start.row.network}")
                reproduce([p.start], out=out, callbacks=replace(callbacks, on_message=None), finished=finished)
            run = train(recipe, out=run.path, resume=True, callbacks=callbacks)
        runs.append(run)
        if finished:
            context.main_process_first(partial(finished, p, run) if context.is_main_process else lambda: None)
    return runs


def with_start(p: Planned, out: Path, run: Run) -> Recipe:
    """The recipe of a planned run, with the model to start from as `model.init`.

    An existing run keeps the path that it was started with, since the folder of the runs may have been moved.
    """
    if p.start is None or p.recipe.model.init:
        return p.recipe

    def started_from(init: str) -> Recipe:
        return p.recipe.model_copy(update={"model": p.recipe.model.model_copy(update={"init": init})})

    if run.recipe_path.is_file() and run.recipe.same_run_as(former := started_from(run.recipe.model.init)):
        return former
    return started_from(Run(out / p.start.name).model_dir.as_posix())


def is_finished(run: Run, recipe: Recipe) -> bool:
    """Whether a run has its receipt.

    Raises:
        InputError: the run has another recipe, or the folder is not a run.
    """
    remedy = "Delete or rename this folder, or choose another --out."
    if run.recipe_path.is_file():
        if not run.recipe.same_run_as(recipe):
            raise InputError(f"{run.path}: {difference(run.recipe, recipe)}.", remedy)
    elif run.path.is_dir() and {path.name for path in run.path.iterdir()} - {partial_path(run.recipe_path).name}:
        raise InputError(f"{run.path}: this folder exists and is not a run.", remedy)
    return run.receipt_path.is_file()


def keep_receipt(run: Run, folder: Path) -> None:
    """Copy the receipt of a run to `folder/NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{run.name}.json", run.receipt_path.read_bytes())


def measured(row: StudyRow, receipt: dict[str, Any]) -> dict[str, Any]:
    """Values for the row of a run in a table; accuracies, if it has any, in percent."""
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
    """Whether a run was measured by retrieval."""
    return "recall_at_1" in receipt["results"]


def views(receipt: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Results of a retrieval run in percent, for each kind of vectors; those of the model come first."""
    results = receipt["results"]
    return {
        name: {key: 100 * value for key, value in numbers.items() if isinstance(value, float)}
        for name, numbers in {results["view"]: results, **results["views"]}.items()
    }
