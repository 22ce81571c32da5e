"""A whole run: recipe and data in; run folder with model, report and receipt out."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lookalike.data.catalog import Catalog, Split
from lookalike.data.pack import Pack, pack
from lookalike.data.read import read
from lookalike.errors import InputError
from lookalike.evaluation.calibration import fit_temperature
from lookalike.evaluation.classification import summary
from lookalike.evaluation.evaluate import logits_of
from lookalike.evaluation.report import write_report
from lookalike.models.pretrained import ModelConfig, Pretrained
from lookalike.recipe import Recipe
from lookalike.run import Run, commit
from lookalike.training import loop
from lookalike.training.distributed import World, join

Packing = Callable[[int, int], None]


@dataclass(frozen=True)
class Watch:
    """Who is told how it goes; each may be None.

    Args:
        packing: called with (images decoded, images in all).
        training: called with each record and the number of steps in all.
        stage: called with a sentence when something else begins.
    """

    packing: Packing | None = None
    training: loop.Watch | None = None
    stage: Callable[[str], None] | None = None

    def say(self, sentence: str) -> None:
        """Tell the stage."""
        if self.stage:
            self.stage(sentence)


def fit(recipe: Recipe, *, root: Path, name: str, resume: bool = False, watch: Watch | None = None) -> Run:
    """Train a recipe under a name, or go on where it was stopped; then measure, and write model, report and receipt.

    Args:
        recipe: the resolved recipe.
        root: the folder of all runs.
        name: of this run.
        resume: go on with the run of this name; it is started when there is none.
        watch: who is told how it goes.

    Returns:
        The finished run.

    Raises:
        InputError: bad data or recipe, a name that is taken, a recipe that differs from the run's.
        TrainingError: the run diverged.
    """
    watch = watch or Watch()
    sources = commit()  # now: they may change while a long run goes on
    world = join(recipe.training.device)
    watch = watch if world.leads else Watch()
    catalog = world.in_turn(lambda: read_trainable(recipe))
    is_new = world.leads and not Run(root / name).recipe_path.is_file()
    run = world.in_turn(lambda: open_run(recipe, root, name, resume or not world.leads))
    try:
        training, validation = (
            world.in_turn(partial(pack_split, catalog, split, recipe, watch)) for split in ("train", "val")
        )
        check_classes(training.catalog)  # undecodable images may have been left out
        trained = train(run, world, training, validation, watch)
    except InputError:
        if is_new and not run.checkpoint_dir.exists():
            shutil.rmtree(run.path)  # it never began: the name is free for the next try
        raise
    world.in_turn(
        lambda: finish(run, world, trained, catalog, training, validation, sources, watch) if world.leads else None
    )
    return run


def read_trainable(recipe: Recipe) -> Catalog:
    """The recipe's data, checked.

    Raises:
        InputError: they cannot be read, or not be trained on.
    """
    catalog = read(recipe.data.source, val_fraction=recipe.data.val_fraction, split_seed=recipe.data.split_seed)
    check_trainable(catalog)
    return catalog


def check_trainable(catalog: Catalog) -> None:
    """Refuse a catalog that cannot be trained on: fewer than two classes, a class or a split without images.

    Raises:
        InputError: it says which.
    """
    where = catalog.root
    if len(catalog.class_names) < 2:
        raise InputError(f"{where}: there is only one class.", "Recognition needs at least two folders of images.")
    for split in ("train", "val"):
        rows = catalog.rows_of(split)
        if not len(rows):
            raise InputError(f"{where}: the {split} split has no images.", "Add some, or set data.val_fraction.")
        if (catalog.labels[rows] < 0).any():
            raise InputError(f"{where}: the {split} split has images without a label.", "Label them or leave them out.")
    check_classes(catalog)


def check_classes(catalog: Catalog) -> None:
    """Refuse a catalog with a class that has no training images.

    Raises:
        InputError: it names the class.
    """
    seen = set(catalog.labels[catalog.rows_of("train")].tolist())
    if empty := [word for label, word in enumerate(catalog.class_names) if label not in seen]:
        raise InputError(
            f"{catalog.root}: class '{empty[0]}' has no training images.", "Add some, or remove the class everywhere."
        )


def open_run(recipe: Recipe, root: Path, name: str, resume: bool) -> Run:
    """The run's folder: made, or opened again when its recipe is this one.

    Raises:
        InputError: the name is taken, or cannot be one; or the run there has another recipe.
    """
    if not resume or not Run(root / name).recipe_path.is_file():
        return Run.create(root, name, recipe)
    run = Run.open(root / name)
    if run.recipe != recipe:
        raise InputError(
            f"{run.path}: {difference(run.recipe, recipe)}.",
            "Resume with the recipe it was started with, or choose another --name.",
        )
    return run


def difference(old: Recipe, new: Recipe) -> str:
    """The first value in which two recipes differ, in words."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return leaves

    was, now = flat(old.model_dump()), flat(new.model_dump())
    key = next(key for key in {**was, **now} if (key in was, was.get(key)) != (key in now, now.get(key)))
    return f"this run has {key}={was.get(key)}, not {now.get(key)}"


def pack_split(catalog: Catalog, split: Split, recipe: Recipe, watch: Watch) -> Pack:
    """The pack of one split, for a recipe."""
    rows = catalog.rows_of(split)
    watch.say(f"{split}: {len(rows):,} images of {catalog.name} at {recipe.data.image_size} pixels")
    made = pack(
        catalog.select(rows),
        recipe.data.image_size,
        skip_undecodable=recipe.data.skip_undecodable,
        progress=watch.packing,
    )
    if made.skipped:
        watch.say(f"left out {len(made.skipped)} that cannot be decoded, {made.skipped[0]} first")
    return made


def train(run: Run, world: World, training: Pack, validation: Pack, watch: Watch) -> loop.Trained:
    """`loop.train`, with a word for a memory that is too small."""
    try:
        return loop.train(run, world, training, validation, watch=watch.training)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{world.device} has not enough memory for this run.",
            "Use a smaller training.batch_size, or training.accumulate=2.",
        ) from None


def finish(
    run: Run,
    world: World,
    trained: loop.Trained,
    catalog: Catalog,
    training: Pack,
    validation: Pack,
    sources: str,
    watch: Watch,
) -> None:
    """Measure the trained network and write `model/`, `receipt.json` and `report.html`."""
    recipe = run.recipe
    watch.say("measuring")
    network = trained.network.to(world.device)
    logits = logits_of(
        network,
        validation.images,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=world.device,
        batch_size=recipe.evaluation.batch_size,
        flip=recipe.evaluation.flip,
    )
    labels = validation.labels
    temperature = fit_temperature(logits, labels)
    results = {
        **summary(logits, labels, class_names=catalog.class_names, temperature=temperature),
        "split": "val",
        "crop": "single",
        "flip": recipe.evaluation.flip,
        "image_size": recipe.data.image_size,
        "weights": "best of the evaluations" if trained.state.stopped_early else "last",
    }
    config = ModelConfig(
        name=recipe.model.name,
        options=recipe.model.options,
        class_names=catalog.class_names,
        class_ids=catalog.class_ids,
        image_size=recipe.data.image_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        temperature=temperature,
        dataset=catalog.name,
        remark=catalog.remark,
    )
    model = Pretrained(network.cpu(), config)
    model.save_pretrained(run.model_dir)
    run.write_receipt(
        results,
        seconds=trained.state.seconds,
        cpu_seconds=round(trained.state.cpu_seconds, 3),
        steps=trained.state.step,
        epochs=recipe.training.epochs,
        batch_size=recipe.training.batch_size,
        processes=world.size,
        threads=torch.get_num_threads(),
        parameters=sum(p.numel() for p in network.parameters()),
        model=recipe.model.name,
        data={
            "name": catalog.name,
            "fingerprint": catalog.fingerprint,
            "train": len(training.images),
            "val": len(validation.images),
            "classes": len(catalog.class_names),
            "skipped": len(training.skipped) + len(validation.skipped),
            "remark": catalog.remark,
        },
        seed=recipe.training.seed,
        device=str(world.device),
        gpu=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        command=shlex.join(["lookalike", *sys.argv[1:]]),
        sources=sources,
    )
    watch.say("writing the report")
    write_report(
        run.report_path,
        title=run.path.name,
        recipe_yaml=recipe.to_yaml(),
        receipt=run.receipt(),
        history=run.history(),
        logits=logits,
        labels=labels,
        images=validation.images,
        class_names=catalog.class_names,
        remark=catalog.remark or None,
    )
