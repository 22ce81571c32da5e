"""A whole run: from recipe and data to a run folder with model, report and receipt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lookalike import recipe as recipes
from lookalike.data.catalog import Catalog, Split
from lookalike.data.copies import leak
from lookalike.data.image_folder import with_drawn_validation
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.data.scan import sentence
from lookalike.errors import InputError
from lookalike.evaluation.protocols import named
from lookalike.files import sync
from lookalike.models.init_backbone import check_blind, fingerprint_of, with_pretrained
from lookalike.recipe import Recipe
from lookalike.run import Run, current_commit
from lookalike.training import checkpoint, loop
from lookalike.training.adapt import adapted
from lookalike.training.distributed import init_distributed
from lookalike.training.finalize import FinishedTraining, TrainingData, finalize
from lookalike.training.metric_logger import OnRecord, Tracker

RUNS = Path("runs")  # folder of runs without an `out` of their own
FEW_PER_CLASS = 50  # training images, below which a classifier on frozen features is likely to be better
MIN_STEPS = 50  # fewer teach a network from random weights little
PAIR_LOSSES = frozenset({"multi_similarity", "pml/MultiSimilarityLoss", "pml/TripletMarginLoss", "pml/ContrastiveLoss"})
OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory")  # in messages of PyTorch, which has no types for them
NO_COMPILER = ("InvalidCxxCompiler", "CppCompileError", "Failed to find C compiler")


@dataclass(frozen=True)
class Callbacks:
    """Functions that are told how a run is going; each may be None.

    Args:
        on_decode: called with (images decoded, images in all).
        on_record: called with each record of the metrics and the number of steps of the whole run.
        on_message: called with a sentence about what happens next.
    """

    on_decode: Callable[[int, int], None] | None = None
    on_record: OnRecord | None = None
    on_message: Callable[[str], None] | None = None

    def message(self, text: str) -> None:
        """Call `on_message`."""
        if self.on_message:
            self.on_message(text)


def train(
    recipe: str | Path | Recipe,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    keep_checkpoint: bool = False,
    trackers: Sequence[Tracker] = (),
    callbacks: Callbacks | None = None,
    **overrides: Any,
) -> Run:
    """Train a recipe, measure the network, and write model, report and receipt into a run folder.

        run = lookalike.train("quickstart", data="pets/", out="runs/pets", training__epochs=10)
        model = lookalike.load(run.model_dir)

    Args:
        recipe: name of a shipped recipe, path of a .yaml file, or a `Recipe`.
        data: what to train on, in place of the recipe's `data.source`: name of a data set, folder, zip, CSV or Parquet.
        out: the run folder; by default "runs/" and the recipe's name.
        resume: continue the run in this folder, or start it if there is none. Its data, and the model whose weights it
            started from, may have moved; `recipe.yaml` then names the new paths. A finished run is returned unchanged.
        keep_checkpoint: keep the training state in the folder of the finished run.
        trackers: get the metrics too; closed at the end.
        callbacks: told how the run is going.
        overrides: recipe keys with "__" for ".", such as `training__epochs=10`. A dict replaces a whole section.

    Returns:
        The finished run.

    Raises:
        InputError: bad data or recipe, a folder that is in use, or a recipe or data that differ from the resumed run's.
        TrainingError: the run diverged.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    try:
        path = Path(out) if out is not None else default_folder(recipe)
        recipe = recipe if isinstance(recipe, Recipe) else recipes.load(str(recipe))
        if overrides or data is not None:
            changes = {key.replace("__", "."): value for key, value in overrides.items()}
            recipe = recipe.with_values(changes if data is None else {**changes, "data.source": str(data)})
        return _train(with_pretrained(recipe), path, resume, keep_checkpoint, trackers, callbacks or Callbacks())
    finally:
        for tracker in trackers:
            tracker.close()


def default_folder(recipe: str | Path | Recipe) -> Path:
    """The run folder of a recipe for which none is given."""
    return RUNS / (recipe.name if isinstance(recipe, Recipe) else Path(recipe).stem)


def _train(
    recipe: Recipe, path: Path, resume: bool, keep_checkpoint: bool, trackers: Sequence[Tracker], callbacks: Callbacks
) -> Run:
    if recipe.fit:
        raise InputError(f"{recipe.name}: a recipe of 'lookalike fit', which trains no network.", "Run that command.")
    commit = current_commit()  # now: the sources may change during a long run
    context = init_distributed(recipe.training.device)
    if not context.is_main_process:
        callbacks = Callbacks()
    first = context.main_process_first
    data = None
    if recipe.training.adapt:
        unread = recipe
        data = first(lambda: read_data(unread))
        recipe = adapted(recipe, len(data.parts["train"]))
        settings = recipe.training
        callbacks.message(
            f"{recipe.model.name} at {recipe.data.image_size} pixels, {settings.epochs} epochs with batches of "
            f"{settings.batch_size}, by {len(data.parts['train']):,} training images and {recipe.model.init}"
        )
    if resume and (finished := first(lambda: finished_run(Run(path), recipe))):
        callbacks.message(f"{finished.path} is finished")
        return finished
    data = data or first(lambda: read_data(recipe))
    if passed_over := data.catalog.passed_over:
        callbacks.message(f"{recipe.data.source}: {sentence(passed_over)}")
    if data.divided and recipe.model.init and not checkpoint.exists(Run(path).checkpoint_dir):
        test = data.divided.test
        first(lambda: check_blind(recipe.model, test.class_ids, test.class_names))
    is_new = context.is_main_process and not Run(path).exists
    run = first(lambda: open_run(recipe, path, resume or not context.is_main_process))
    try:
        training, evaluation = (
            first(partial(pack_images, data, split, recipe, callbacks)) for split in ("train", data.evaluation_split)
        )
        check_classes(training.catalog, data.divided is None)  # images that cannot be decoded may have been skipped
        if not run.recipe.same_run_as(recipe):
            first(lambda: adopt(run, recipe, training, evaluation, writes=context.is_main_process))
        if run.is_finished:
            callbacks.message(f"{run.path} is finished")
            return run
        copies = leak(training, evaluation) if context.is_main_process else None
        if copies:
            callbacks.message(f"{data.evaluation_split}: {copies.sentence}")
        if hint := advice(recipe, len(training.images)):
            callbacks.message(hint)
        if hint := hint_at_fit(recipe, training):
            callbacks.message(hint)
        try:
            trained = loop.train(run, context, training, evaluation, on_record=callbacks.on_record, trackers=trackers)
        except RuntimeError as error:
            if problem := machine_problem(error, context.device):
                raise problem from None
            raise
    except InputError:
        if is_new and not run.checkpoint_dir.exists():
            shutil.rmtree(run.path)  # training never began: leave the folder free for the next try
        raise
    if context.is_main_process:
        callbacks.message("measuring and writing the report")
    done = FinishedTraining(run, context, trained, data, training, evaluation, commit, copies)
    first(lambda: finalize(done) if context.is_main_process else None)
    if context.is_main_process and not keep_checkpoint:  # no other process reads it any more
        sync_run(run)
        checkpoint.remove(run.checkpoint_dir)
    return run


def finished_run(run: Run, recipe: Recipe) -> Run | None:
    """The run if it is finished and has exactly this recipe; None if there is more to do or to compare.

    Raises:
        InputError: it is finished and has another recipe.
    """
    if not run.exists or not run.is_finished:
        return None
    check_recipe(run, recipe)
    return run if run.recipe.same_run_as(recipe) else None


def adopt(run: Run, recipe: Recipe, training: Pack, evaluation: Pack, *, writes: bool) -> None:
    """Continue a run whose data, or the model that it starts from, have moved.

    Args:
        run: made with a recipe that differs from `recipe` in paths only.
        recipe: names the new paths.
        training: the training images found there.
        evaluation: the evaluation images found there.
        writes: whether this process writes the new recipe into the run folder.

    Raises:
        InputError: the data, or the model to start from, are not the same.
    """
    began, start = None, None
    if run.is_finished:
        receipt = run.receipt()
        began, start = receipt["data"].get("content", ""), receipt["start"]
    elif checkpoint.exists(run.checkpoint_dir):
        began, start = checkpoint.read_origin(run.checkpoint_dir)
    same = (loop.content_of(training, evaluation), loop.stamps_of(training, evaluation))
    if began is not None and began not in same:
        raise checkpoint.data_changed(run.path)
    if start and recipe.model.init != run.recipe.model.init:
        found = fingerprint_of(recipe.model)
        if found != start["fingerprint"]:
            raise InputError(
                f"{run.path}: this run was started from another model than {recipe.model.init}.",
                "Resume with the model that it was started from, or choose another --out.",
            )
    if writes:
        run.keep_recipe(recipe)
    else:
        run.recipe = recipe


def sync_run(run: Run) -> None:
    """Flush the files of a finished run to the disk."""
    files = [*run.model_dir.iterdir(), run.receipt_path, run.report_path]
    for path in [*(file for file in files if file.is_file()), run.model_dir, run.path]:
        with suppress(PermissionError):  # Windows cannot open folders
            sync(path)


def read_data(recipe: Recipe) -> TrainingData:
    """Read and check the recipe's data, divided by its protocol or by the splits of the source.

    Raises:
        InputError: the data cannot be read, trained on or measured on.
    """
    protocol = named(recipe.data.protocol) if recipe.data.protocol else None
    catalog = load_dataset(recipe.data.source, val_fraction=recipe.data.val_fraction, split_seed=recipe.data.split_seed)
    if protocol:
        divided = protocol.divide(catalog)
        return TrainingData(catalog, {"train": divided.training, "test": divided.test}, divided)
    catalog = with_drawn_validation(catalog, recipe.data.val_fraction, recipe.data.split_seed)
    check_trainable(catalog)
    return TrainingData(catalog, {split: catalog.select(catalog.rows_of(split)) for split in ("train", "val")})


def check_trainable(catalog: Catalog) -> None:
    """Check that a catalog can be trained on.

    Raises:
        InputError: there are fewer than two classes, or a class or a split has no images or labels.
    """
    where = catalog.root
    if len(catalog.class_names) < 2:
        raise InputError(f"{where}: there is only one class.", "Training needs images of two or more classes.")
    for split in ("train", "val"):
        rows = catalog.rows_of(split)
        if not len(rows):
            raise InputError(f"{where}: the {split} split has no images.", "Add some, or set data.val_fraction.")
        if (catalog.labels[rows] < 0).any():
            raise InputError(f"{where}: the {split} split has images without a label.", "Label them or leave them out.")
    check_classes(catalog)


def check_classes(catalog: Catalog, by_split: bool = True) -> None:
    """Check that every class has training images.

    Args:
        catalog: the data.
        by_split: whether only the images of the training split count, or all of them.

    Raises:
        InputError: a class has none.
    """
    seen = set((catalog.labels[catalog.rows_of("train")] if by_split else catalog.labels).tolist())
    if empty := [word for label, word in enumerate(catalog.class_names) if label not in seen]:
        raise InputError(
            f"{catalog.root}: class '{empty[0]}' has no training images.", "Add some, or remove the class everywhere."
        )


def open_run(recipe: Recipe, path: Path, resume: bool) -> Run:
    """Create the run folder, or open it if the run is resumed and has the same recipe.

    Raises:
        InputError: the folder is in use, or the run in it has another recipe.
    """
    if not resume or not Run(path).exists:
        return Run.create(path, recipe)
    run = Run.open(path)
    check_recipe(run, recipe)
    return run


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Check that a run has this recipe; paths of data and initial model may differ, `adopt` compares their content.

    Raises:
        InputError: they differ in a value, which it names.
    """
    placed = run.recipe.with_paths_of(recipe)
    if not placed.same_run_as(recipe):
        raise InputError(
            f"{run.path}: {difference(placed, recipe)}.",
            "Resume with the recipe that it was started with, or choose another --out.",
        )


def difference(old: Recipe, new: Recipe) -> str:
    """The first value in which two recipes differ, as a clause for a message; `about` is not compared."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return leaves

    was, now = (flat(one.model_dump(exclude={"about"})) for one in (old, new))
    key = next(key for key in {**was, **now} if (key in was, was.get(key)) != (key in now, now.get(key)))
    return f"this run has {key}={was.get(key)}, not {now.get(key)}"


def pack_images(data: TrainingData, split: Split, recipe: Recipe, callbacks: Callbacks) -> Pack:
    """Decode the images of one split, or take them from the cache."""
    images = data.parts[split]
    classes = f" of {len(images.class_names)} classes" if data.divided else ""
    callbacks.message(f"{split}: {len(images):,} images{classes} of {images.name} at {recipe.data.image_size} pixels")
    made = pack(
        images,
        recipe.data.image_size,
        crop_boxes=recipe.data.crop_boxes,
        crop_mode=recipe.data.crop_mode,
        skip_undecodable=recipe.data.skip_undecodable,
        progress=callbacks.on_decode,
    )
    if made.skipped:
        callbacks.message(f"skipped {len(made.skipped)} images that cannot be decoded; the first is {made.skipped[0]}")
    return made


def advice(recipe: Recipe, images: int) -> str:
    """A hint for a run that will learn little because it has few steps or few pairs of one class; else empty."""
    settings = recipe.training
    steps, more = loop.count_steps(settings, images), "a smaller training.batch_size or more training.epochs"
    if settings.batch_size > images:
        return f"training.batch_size={settings.batch_size} is more than the {images} training images: use {more}"
    if steps < MIN_STEPS and not starts_trained(recipe):
        return f"{steps} steps in all are few to learn from: use {more}"
    if recipe.loss.name in PAIR_LOSSES and not recipe.data.sampler.classes:
        return (
            f"loss.name={recipe.loss.name} learns from pairs of one class, and shuffled batches have few: "
            "set data.sampler={classes: 20, images: 4}"
        )
    return ""


def hint_at_fit(recipe: Recipe, training: Pack) -> str:
    """A hint at `lookalike fit` if there are few images per class; else empty."""
    per_class = len(training.images) / len(training.catalog.class_names)
    if recipe.data.protocol or per_class >= FEW_PER_CLASS:
        return ""
    return (
        f"{per_class:.0f} training images per class are few: 'lookalike fit {recipe.data.source}' takes seconds and is "
        "likely to do better"
    )


def starts_trained(recipe: Recipe) -> bool:
    """Whether the initial weights are those of a trained network, which needs few steps."""
    return bool(recipe.model.init)


def machine_problem(error: RuntimeError, device: torch.device) -> InputError | None:
    """The error to show when PyTorch's says that memory or a compiler is missing; None for any other."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return InputError(
            f"{device} has not enough memory for this run.",
            "Use a smaller training.batch_size or training.resolution, or training.grad_accum_steps=2.",
        )
    if any(words in text for words in NO_COMPILER):
        return InputError(
            "training.compile=true needs a C++ compiler, and none works here.",
            "Install one (such as g++), or set training.compile=false.",
        )
    return None
