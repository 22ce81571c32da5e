"""A whole run: recipe and data in; run folder with model, report and receipt out. See `finish` for its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lookalike.data.catalog import Catalog, Split
from lookalike.data.copies import leak
from lookalike.data.image_folder import with_drawn_validation
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.data.scan import sentence
from lookalike.errors import InputError
from lookalike.evaluation.protocols import named
from lookalike.files import sync
from lookalike.models.init_backbone import check_blind, fingerprint_of, timm_start
from lookalike.recipe import Recipe
from lookalike.run import Run, commit
from lookalike.training import checkpoint, loop
from lookalike.training.distributed import DistributedContext, join
from lookalike.training.finalize import Material, finalize

FEW_STEPS = 50
LOSSES_ON_PAIRS = frozenset(
    {"multi_similarity", "pml/MultiSimilarityLoss", "pml/TripletMarginLoss", "pml/ContrastiveLoss"}
)
NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory")  # what PyTorch's errors hold; it has no types for them
NO_COMPILER = ("InvalidCxxCompiler", "CppCompileError", "Failed to find C compiler")

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


def fit(
    recipe: Recipe,
    *,
    root: Path,
    name: str,
    resume: bool = False,
    keep_checkpoint: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Train a recipe under a name, or go on where it was stopped; then measure, and write model, report and receipt.

    Args:
        recipe: the resolved recipe.
        root: the folder of all runs.
        name: of this run.
        resume: go on with the run of this name; it is started when there is none. Its data, and the model that it
            started from, may lie elsewhere by now; `recipe.yaml` then says where. A finished run is left as it is.
        keep_checkpoint: leave the training state in the folder of the finished run.
        watch: who is told how it goes.

    Returns:
        The finished run.

    Raises:
        InputError: bad data or recipe, a name that is taken, a recipe or data that differ from the run's.
        TrainingError: the run diverged.
    """
    watch = watch or Watch()
    sources = commit()  # now: they may change while a long run goes on
    world = join(recipe.training.device)
    watch = watch if world.leads else Watch()
    if resume and (finished := world.in_turn(lambda: finished_run(Run(root / name), recipe))):
        watch.say(f"{finished.path} is finished")
        return finished
    material = world.in_turn(lambda: read_material(recipe))
    if passed_over := material.catalog.passed_over:
        watch.say(f"{recipe.data.source}: {sentence(passed_over)}")
    if material.divided and recipe.model.init and not checkpoint.exists(Run(root / name).checkpoint_dir):
        test = material.divided.test
        world.in_turn(lambda: check_blind(recipe.model, test.class_ids, test.class_names))
    is_new = world.leads and not Run(root / name).exists
    run = world.in_turn(lambda: open_run(recipe, root, name, resume or not world.leads))
    try:
        training, measured = (
            world.in_turn(partial(pack_images, material, side, recipe, watch)) for side in ("train", material.measured)
        )
        check_classes(training.catalog, material.divided is None)  # undecodable images may have been left out
        if not run.recipe.does_as(recipe):
            world.in_turn(lambda: adopt(run, recipe, training, measured, writes=world.leads))
        if run.is_finished:
            watch.say(f"{run.path} is finished")
            return run
        copies = leak(training, measured) if world.leads else None
        if copies:
            watch.say(f"{material.measured}: {copies.sentence}")
        if hint := advice(recipe, len(training.images)):
            watch.say(hint)
        trained = train(run, world, training, measured, watch)
    except InputError:
        if is_new and not run.checkpoint_dir.exists():
            shutil.rmtree(run.path)  # it never began: the name is free for the next try
        raise
    if world.leads:
        watch.say("measuring, then the report")
    world.in_turn(
        lambda: finalize(run, world, trained, material, training, measured, sources, copies) if world.leads else None
    )
    if world.leads and not keep_checkpoint:  # by now no other process reads it
        to_disk(run)
        checkpoint.remove(run.checkpoint_dir)
    return run


def finished_run(run: Run, recipe: Recipe) -> Run | None:
    """The run, if it is finished and has just this recipe; None where there is more to do or to compare.

    Raises:
        InputError: it is finished, and has another recipe.
    """
    if not run.exists or not run.is_finished:
        return None
    check_recipe(run, recipe)
    return run if run.recipe.does_as(recipe) else None


def adopt(run: Run, recipe: Recipe, training: Pack, measured: Pack, *, writes: bool) -> None:
    """Let a run go on with data, or a start, that lie elsewhere now.

    Args:
        run: that was made with another recipe, which differs in places only.
        recipe: which says where they are.
        training: the images that are there to train on.
        measured: those to measure on.
        writes: whether we are to write the new recipe into the folder of the run.

    Raises:
        InputError: the data, or the model to start from, are others.
    """
    began, start = None, None
    if run.is_finished:
        receipt = run.receipt()
        began, start = receipt["data"].get("content", ""), receipt["start"]
    elif checkpoint.exists(run.checkpoint_dir):
        began, start = checkpoint.begun_with(run.checkpoint_dir)
    if began is not None and began not in (loop.content_of(training, measured), loop.stamps_of(training, measured)):
        raise checkpoint.changed(run.path)
    if start and recipe.model.init != run.recipe.model.init:
        there = fingerprint_of(recipe.model)
        if there != start["fingerprint"]:
            raise InputError(
                f"{run.path}: this run started from another model than {recipe.model.init}.",
                "Resume with the model it was started from, or choose another --name.",
            )
    if writes:
        run.keep_recipe(recipe)
    else:
        run.recipe = recipe


def to_disk(run: Run) -> None:
    """See that what a finished run is made of is on the disk, not only on its way there."""
    files = [*run.model_dir.iterdir(), run.receipt_path, run.report_path]
    for path in [*(file for file in files if file.is_file()), run.model_dir, run.path]:
        with suppress(PermissionError):  # Windows opens no folders
            sync(path)


def read_material(recipe: Recipe) -> Material:
    """The recipe's data, checked: by its protocol, or by the splits of the source.

    Raises:
        InputError: they cannot be read, not be trained on, or not be measured on.
    """
    protocol = named(recipe.data.protocol) if recipe.data.protocol else None
    catalog = load_dataset(recipe.data.source, val_fraction=recipe.data.val_fraction, split_seed=recipe.data.split_seed)
    if protocol:
        divided = protocol.divide(catalog)
        return Material(catalog, {"train": divided.training, "test": divided.test}, divided)
    catalog = with_drawn_validation(catalog, recipe.data.val_fraction, recipe.data.split_seed)
    check_trainable(catalog)
    return Material(catalog, {split: catalog.select(catalog.rows_of(split)) for split in ("train", "val")})


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


def check_classes(catalog: Catalog, by_split: bool = True) -> None:
    """Refuse a catalog with a class that has no training images.

    Args:
        catalog: the data.
        by_split: training images are those of the training split; else, by a protocol, all.

    Raises:
        InputError: it names the class.
    """
    seen = set((catalog.labels[catalog.rows_of("train")] if by_split else catalog.labels).tolist())
    if empty := [word for label, word in enumerate(catalog.class_names) if label not in seen]:
        raise InputError(
            f"{catalog.root}: class '{empty[0]}' has no training images.", "Add some, or remove the class everywhere."
        )


def open_run(recipe: Recipe, root: Path, name: str, resume: bool) -> Run:
    """The run's folder: made, or opened again when its recipe is this one.

    Raises:
        InputError: the name is taken, or cannot be one; or the run there has another recipe.
    """
    if not resume or not Run(root / name).exists:
        return Run.create(root, name, recipe)
    run = Run.open(root / name)
    check_recipe(run, recipe)
    return run


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse to go on with a run by another recipe; where its data and its start lie is compared later, by content.

    Raises:
        InputError: it names a value in which they differ.
    """
    placed = run.recipe.placed_as(recipe)
    if not placed.does_as(recipe):
        raise InputError(
            f"{run.path}: {difference(placed, recipe)}.",
            "Resume with the recipe it was started with, or choose another --name.",
        )


def difference(old: Recipe, new: Recipe) -> str:
    """The first value in which two recipes differ, in words; what they say about themselves is none."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return leaves

    was, now = (flat(one.model_dump(exclude={"about"})) for one in (old, new))
    key = next(key for key in {**was, **now} if (key in was, was.get(key)) != (key in now, now.get(key)))
    return f"this run has {key}={was.get(key)}, not {now.get(key)}"


def pack_images(material: Material, side: Split, recipe: Recipe, watch: Watch) -> Pack:
    """The pack of one side of the material, for a recipe."""
    images = material.sides[side]
    classes = f" of {len(images.class_names)} classes" if material.divided else ""
    watch.say(f"{side}: {len(images):,} images{classes} of {images.name} at {recipe.data.image_size} pixels")
    made = pack(
        images,
        recipe.data.image_size,
        crop_boxes=recipe.data.crop_boxes,
        crop_mode=recipe.data.crop_mode,
        skip_undecodable=recipe.data.skip_undecodable,
        progress=watch.packing,
    )
    if made.skipped:
        watch.say(f"left out {len(made.skipped)} that cannot be decoded, {made.skipped[0]} first")
    return made


def advice(recipe: Recipe, images: int) -> str:
    """A word to a run that will learn little from so many training images, of few steps or few pairs; else empty."""
    settings = recipe.training
    steps, more = loop.count_steps(settings, images), "a smaller training.batch_size or more training.epochs"
    if settings.batch_size > images:
        return f"a batch of {settings.batch_size} is more than all {images} training images: use {more}"
    if steps < FEW_STEPS and not starts_trained(recipe):
        return f"{steps} steps in all teach a network little: use {more}"
    if recipe.loss.name in LOSSES_ON_PAIRS and not recipe.data.sampler.classes:
        return (
            f"loss.name={recipe.loss.name} learns from pairs of one class, and shuffled batches hold few: "
            "set data.sampler={classes: 20, images: 4}"
        )
    return ""


def starts_trained(recipe: Recipe) -> bool:
    """Whether the first weights are those of a trained network, which learns in few steps."""
    return bool(recipe.model.init) or timm_start(recipe.model) is not None


def train(run: Run, world: DistributedContext, training: Pack, measured: Pack, watch: Watch) -> loop.Trained:
    """`loop.train`, with a word for what the machine lacks: memory, or a compiler."""
    try:
        return loop.train(run, world, training, measured, watch=watch.training)
    except RuntimeError as error:
        if lack := what_lacks(error, world.device):
            raise lack from None
        raise


def what_lacks(error: RuntimeError, device: torch.device) -> InputError | None:
    """The error to show for one of PyTorch's that says that the machine lacks something; None for any other."""
    words = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(word in words for word in NO_MEMORY):
        return InputError(
            f"{device} has not enough memory for this run.",
            "Use a smaller training.batch_size or training.resolution, or training.grad_accum_steps=2.",
        )
    if any(word in words for word in NO_COMPILER):
        return InputError(
            "training.compile=true needs a C++ compiler, and none works here.",
            "Install one (such as g++), or set training.compile=false.",
        )
    return None
