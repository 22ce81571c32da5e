"""`lookalike fit`: a classifier on the frozen features of a trained model, in seconds.

The network is not trained. Its features of each image and of the mirror image are computed once, a linear classifier is
fitted to them (`lookalike.training.probe`), and the result is a run folder like that of a training.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.data.catalog import UNLABELLED, Catalog, Row
from lookalike.data.copies import Leak, leak
from lookalike.data.labelled import LabelledItems
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.data.scan import sentence
from lookalike.errors import InputError, without_passwords
from lookalike.evaluation.evaluate import outputs_of
from lookalike.hardware import choose_device
from lookalike.image import decode
from lookalike.models.init_backbone import Start, start_from
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.serialization import DEFAULT, ModelConfig
from lookalike.models.timm import Pooling, TimmNetwork
from lookalike.recipe import Data, Fit, Model, Recipe, validate
from lookalike.run import Run, current_commit
from lookalike.training.finalize import HeldOut, model_config, save_classifier, write_classifier_report
from lookalike.training.fit_head import BATCH_SIZE, check_counts, groups_of_copies, set_classifier
from lookalike.training.probe import Kind, fit_probe, kind_for
from lookalike.training.run import RUNS, Callbacks, check_classes

SAME_VECTOR = 0.999  # cosine of the vectors of one image that are computed in two ways
KINDS: dict[Kind, str] = {"logistic": "logistic regression", "prototypes": "class prototypes"}


@dataclass(frozen=True)
class Features:
    """Features of labelled images, of length 1.

    Args:
        catalog: paths, labels and classes of the images.
        views: (N, D) float32 each: of the images, and of their mirror images unless they are not known.
        groups: (N,) int64, equal for copies.
        images: (N, size, size, 3) uint8; or the thumbnails of a gallery.
        skipped: number of files that could not be decoded.
    """

    catalog: Catalog
    views: list[NDArray[np.float32]]
    groups: NDArray[np.int64]
    images: NDArray[np.uint8] | Thumbnails
    skipped: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.catalog.labels.astype(np.int64)


def fit(
    data: str | Path | LabelledItems,
    *,
    model: str | Path | None = None,
    out: str | Path | None = None,
    classifier: str = "auto",
    mirror: bool = True,
    skip_undecodable: bool = False,
    seed: int = 0,
    device: str = "auto",
    callbacks: Callbacks | None = None,
) -> Run:
    """Fit a classifier to the features of a trained model, and write model, report and receipt into a run folder.

        run = lookalike.fit("pets/", out="runs/pets")
        print(lookalike.load(run.path).predict("photo.jpg"))

    If the data have a validation split, the classifier is measured on it. If not, it is measured by cross-validation:
    each image by a classifier that was fitted without it. The saved classifier is fitted to all images.

    Args:
        data: name of a data set, folder, zip, CSV or Parquet file; or `Gallery.labelled()`, whose vectors are used if
            they are from this model.
        model: whose features are used: a model folder, a Hub id or "default". None: "default", or the gallery's model.
        out: the run folder; by default `runs/fit`.
        classifier: "logistic" (regression), "prototypes" (the class whose mean is nearest), or "auto": prototypes if a
            class has fewer than five images.
        mirror: fit to the mirror images, too.
        skip_undecodable: leave out images that cannot be decoded.
        seed: of the cross-validation.
        device: to compute features on.
        callbacks: told how it is going.

    Returns:
        The finished run.

    Raises:
        InputError: no such data or model, a class with one image, images without a label, or a folder in use.
    """
    clock = time.perf_counter(), time.process_time()
    commit = current_commit()
    items = data if isinstance(data, LabelledItems) else None
    if model is None:
        model = DEFAULT if items is None else items.model
        if not model:
            raise InputError(f"{items.location if items else ''}: its model is not known.", "Name it with --model.")
    trained = load(model, device=str(choose_device(device)))
    callbacks = callbacks or Callbacks()
    source = items.location if items is not None else str(data)
    recipe = _recipe(trained.config, source, str(model), {"classifier": classifier, "mirror": mirror, "seed": seed})
    path = Path(out) if out is not None else RUNS / "fit"
    if Run(path).exists:
        raise InputError(f"{path}: this run exists already.", "Choose another --out.")
    if items is None:
        catalog = load_dataset(source, val_fraction=0)
        if catalog.passed_over:
            callbacks.message(f"{source}: {sentence(catalog.passed_over)}")
    else:
        catalog = catalog_of(items)
    check_fittable(catalog)
    recipe, kind = _resolved(recipe, catalog)
    run = Run.create(path, recipe)
    try:
        network, start = _network(trained, recipe, len(catalog.class_names))
        reader = _Reader(network, trained.config, mirror, skip_undecodable, callbacks)
        validation = None
        if items is not None and _can_use(items, trained, network):
            images = Thumbnails(items, trained.config)
            training = Features(catalog, [items.vectors.astype(np.float32)], items.groups, images)
            callbacks.message(f"{source}: the stored vectors of {len(items):,} labelled items are used")
        else:
            training = reader.read(catalog, "train")
            validation = reader.read(catalog, "val") if len(catalog.rows_of("val")) else None
        check_counts(training.catalog, training.groups)
        if words := _copies_in_two_classes(training):
            callbacks.message(words)
        callbacks.message(f"fitting {KINDS[kind]} to {len(training.labels):,} images")
        probe = fit_probe(
            training.views, training.labels, len(catalog.class_names), kind=kind, groups=training.groups, seed=seed
        )
        set_classifier(network, probe)
        config = model_config(recipe, training.catalog, catalog.remark, asdict(start))
        config = config.model_copy(update={"val_fraction": None, "split_seed": None, "pooling": _pooling(network)})
        measured = training if validation is None else validation
        logits = probe.logits if validation is None else validation.views[0] @ probe.weight.T + probe.bias
        vectors = _vectors(ImageModel(network, config), measured)
        held_out = HeldOut(logits, measured.labels, vectors, measured.images, measured.catalog.paths)
        callbacks.message("measuring and writing the report")
        results = save_classifier(run, network, config, held_out)
        results |= {"split": "train", "folds": probe.folds} if validation is None else {"split": "val"}
        copies = leak(reader.packs["train"], reader.packs["val"]) if validation is not None else None
        run.write_receipt(
            {**results, "flip": False},
            seconds=time.perf_counter() - clock[0],
            cpu_seconds=round(time.process_time() - clock[1], 3),
            processes=1,
            threads=torch.get_num_threads(),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            model=trained.config.name,
            start=asdict(start),
            fit={
                "classifier": KINDS[kind],
                "strength": probe.strength,
                "folds": probe.folds,
                "losses": {f"{strength:g}": round(loss, 5) for strength, loss in probe.losses.items()},
                "views": len(training.views),
            },
            data=_about_data(catalog, training, validation, copies),
            seed=seed,
            device=str(trained.device),
            gpu=torch.cuda.get_device_name(trained.device) if trained.device.type == "cuda" else None,
            command=without_passwords(shlex.join(["lookalike", *sys.argv[1:]])),
            commit=commit,
        )
        write_classifier_report(run, held_out, config)
    except BaseException:
        shutil.rmtree(path)  # there is nothing to continue
        raise
    return run


def catalog_of(items: LabelledItems) -> Catalog:
    """The images of labelled items as a catalog."""
    rows = [Row(path, label, "train") for path, label in zip(items.paths, items.labels.tolist(), strict=True)]
    return Catalog.from_rows(rows, root=Path("/"), class_names=items.class_names, name=items.name)


def check_fittable(catalog: Catalog) -> None:
    """Check that a classifier can be fitted to a catalog.

    Raises:
        InputError: fewer than two classes, images without a label, or a class without images.
    """
    if len(catalog.class_names) < 2:
        raise InputError(f"{catalog.root}: there is only one class.", "A classifier needs two or more.")
    for split in ("train", "val"):
        if (catalog.labels[catalog.splits == split] == UNLABELLED).any():
            row = int(np.flatnonzero((catalog.splits == split) & (catalog.labels == UNLABELLED))[0])
            raise InputError(
                f"{catalog.root}: '{catalog.paths[row]}' has no label.", "Label it, or leave it out of the data."
            )
    check_classes(catalog)


def _recipe(config: ModelConfig, source: str, model: str, fit: dict[str, Any]) -> Recipe:
    options = {key: value for key, value in config.options.items() if key != "pretrained"}
    return Recipe(
        name="fit",
        data=Data(
            source=source,
            image_size=config.image_size,
            crop_mode=config.crop_mode,
            mean=config.mean,
            std=config.std,
            val_fraction=0.0,
        ),
        model=Model(name=config.name, options=options, init=model, unit_features=True),
        fit=validate(Fit, fit, "fit"),
    )


def _resolved(recipe: Recipe, catalog: Catalog) -> tuple[Recipe, Kind]:
    """The recipe with the kind of classifier that "auto" means for these images, and that kind."""
    assert recipe.fit is not None
    chosen = recipe.fit.classifier
    kind: Kind = kind_for(catalog.labels[catalog.rows_of("train")].astype(np.int64)) if chosen == "auto" else chosen
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"classifier": kind})}), kind


def _network(trained: ImageModel, recipe: Recipe, num_classes: int) -> tuple[nn.Module, Start]:
    """The trained network with a new classifier for these classes, on the same device."""
    network = create_model(recipe.model.name, num_classes, recipe.model.options, unit_features=True)
    start = start_from(network, recipe.model)
    if isinstance(network, TimmNetwork) and trained.config.head is None:
        network.pooling = trained.config.pooling
    return network.to(trained.device, memory_format=torch.channels_last).eval(), start  # type: ignore[call-overload]


def _pooling(network: nn.Module) -> Pooling:
    """The pooling with which the features were computed."""
    return network.pooling if isinstance(network, TimmNetwork) else "mean"


class _Reader:
    """Decodes images, as the model does, and computes their features."""

    def __init__(
        self, network: nn.Module, config: ModelConfig, mirror: bool, skip_undecodable: bool, callbacks: Callbacks
    ) -> None:
        self.network, self.config, self.mirror = network, config, mirror
        self.skip_undecodable, self.callbacks = skip_undecodable, callbacks
        self.packs: dict[str, Pack] = {}

    def read(self, catalog: Catalog, split: str) -> Features:
        """The features of one split.

        Raises:
            InputError: images that cannot be decoded.
        """
        config = self.config
        chosen = catalog.select(np.flatnonzero(catalog.splits == split))
        self.callbacks.message(
            f"{split}: features of {len(chosen):,} images of {catalog.name} at {config.image_size} pixels"
        )
        packed = pack(
            chosen,
            config.image_size,
            crop_mode=config.crop_mode,
            skip_undecodable=self.skip_undecodable,
            progress=self.callbacks.on_decode,
        )
        self.packs[split] = packed
        views = [self._features(packed.images)]
        if self.mirror and split == "train":
            views.append(self._features(packed.images[:, :, ::-1]))
        return Features(packed.catalog, views, groups_of_copies(packed), packed.images, len(packed.skipped))

    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        mean, std = self.config.mean, self.config.std
        found = outputs_of(self.network, images, view="classifier", mean=mean, std=std, batch_size=BATCH_SIZE)
        if not np.isfinite(found).all():
            raise InputError(f"{self.config.name}: its features are not finite.", "Use another --model.")
        return found


def _copies_in_two_classes(training: Features) -> str:
    """A warning for images that have copies in another class; else empty."""
    order = np.argsort(training.groups, kind="stable")
    groups, labels = training.groups[order], training.labels[order]
    twice = np.flatnonzero((groups[1:] == groups[:-1]) & (labels[1:] != labels[:-1]))
    if not len(twice):
        return ""
    one, other = (training.catalog.paths[order[twice[0] + step]] for step in (0, 1))
    return f"{len(twice):,} images have a copy in another class: {one} = {other}; correct one of the labels"


def _can_use(items: LabelledItems, trained: ImageModel, network: nn.Module) -> bool:
    """Whether the stored vectors are what the classifier takes: they are from this model, and it takes its vectors."""
    if items.fingerprint != trained.fingerprint:
        return False
    size = trained.config.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    taken = outputs_of(network, image, view="classifier", mean=trained.config.mean, std=trained.config.std)
    vectors = trained.embed(image)
    return taken.shape == vectors.shape and float((taken * vectors).sum()) > SAME_VECTOR


class Thumbnails:
    """The thumbnails of labelled items at the size of a model, each read when the report shows it; gray without one."""

    def __init__(self, items: LabelledItems, config: ModelConfig) -> None:
        self.items, self.size, self.crop_mode = items, config.image_size, config.crop_mode

    def __getitem__(self, row: int, /) -> NDArray[np.uint8]:
        thumbnail = self.items.thumbnail(row)
        if thumbnail is None:
            return np.full((self.size, self.size, 3), 127, np.uint8)
        return decode(thumbnail, self.size, crop_mode=self.crop_mode)


def _vectors(model: ImageModel, measured: Features) -> NDArray[np.float32]:
    """`ImageModel.embed` of the images; their features if these are the same, as those that a gallery stores are."""
    own = measured.views[0]
    if isinstance(measured.images, Thumbnails):
        return own
    some = model.embed(measured.images[:2])
    if some.shape[1] == own.shape[1] and ((some * own[:2]).sum(1) > SAME_VECTOR).all():
        return own
    return model.embed(measured.images)


def _about_data(
    catalog: Catalog, training: Features, validation: Features | None, copies: Leak | None
) -> dict[str, Any]:
    """What the receipt says of the data."""
    return {
        "name": catalog.name,
        "fingerprint": catalog.fingerprint,
        "train": len(training.labels),
        **({} if validation is None else {"val": len(validation.labels)}),
        "classes": len(catalog.class_names),
        "skipped": training.skipped + (0 if validation is None else validation.skipped),
        "copies": None if copies is None else {"count": copies.count, "sentence": copies.sentence},
        "remark": catalog.remark,
    }
