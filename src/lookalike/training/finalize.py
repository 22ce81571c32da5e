"""The end of a run: the trained network is measured, and model, receipt and report are written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lookalike.data.catalog import Catalog, Split
from lookalike.data.copies import Leak
from lookalike.data.pack import Pack
from lookalike.errors import without_passwords
from lookalike.evaluation.calibration import fit_temperature, unknown_threshold
from lookalike.evaluation.classification import summary
from lookalike.evaluation.evaluate import evaluate_retrieval, outputs_of
from lookalike.evaluation.pair_similarity import match_threshold
from lookalike.evaluation.protocols import Divided
from lookalike.models.pretrained import ImageModel
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Recipe
from lookalike.reports.classification import write_report
from lookalike.reports.retrieval import write_retrieval_report
from lookalike.run import Run
from lookalike.training.distributed import DistributedContext
from lookalike.training.loop import Trained, content_of


@dataclass(frozen=True)
class Material:
    """The images of a run.

    Args:
        catalog: all of the source.
        sides: those that are trained on, "train", and those that are measured on: "val", or "test" by a protocol.
        divided: what the protocol made of the catalog, if there is one.
    """

    catalog: Catalog
    sides: Mapping[Split, Catalog]
    divided: Divided | None = None

    @property
    def measured(self) -> Split:
        return "test" if self.divided else "val"

    @property
    def remark(self) -> str:
        return self.divided.remark if self.divided else self.catalog.remark


def finalize(
    run: Run,
    world: DistributedContext,
    trained: Trained,
    material: Material,
    training: Pack,
    measured: Pack,
    sources: str,
    copies: Leak | None,
) -> None:
    """Measure the trained network and write `model/`, `receipt.json` and `report.html`.

    Args:
        run: its folder.
        world: of which this is the leading process.
        trained: what came of the training.
        material: the data.
        training: the images trained on.
        measured: the images to measure on.
        sources: the commit that the run began with.
        copies: images measured on that were trained on too.

    Raises:
        InputError: outputs that cannot be measured, or a file that cannot be written.
    """
    write = finalize_retrieval if material.divided else finalize_classification
    write(run, world, trained, material, training, measured, sources, copies)


def finalize_classification(
    run: Run,
    world: DistributedContext,
    trained: Trained,
    material: Material,
    training: Pack,
    measured: Pack,
    sources: str,
    copies: Leak | None,
) -> None:
    """`finish` of a run without a protocol: top-1 and all that belongs to it, with a fitted temperature."""
    recipe = run.recipe
    network = trained.network.to(world.device)
    logits = outputs_of(
        network,
        measured.images,
        view="outputs",
        mean=recipe.data.mean,
        std=recipe.data.std,
        batch_size=recipe.evaluation.batch_size,
        flip=recipe.evaluation.flip,
    )
    labels = measured.labels
    temperature = fit_temperature(logits, labels)
    results = {
        **summary(logits, labels, class_names=material.catalog.class_names, temperature=temperature.value),
        "temperature_remark": temperature.reason,
        "split": "val",
        "crop": "single",
        "flip": recipe.evaluation.flip,
        "image_size": recipe.data.image_size,
        "weights": kind_of_weights(trained),
    }
    config = config_of(recipe, training.catalog, material.remark, trained.state.start)
    vectors = ImageModel(network, config).embed(measured.images, batch_size=recipe.evaluation.batch_size)
    measures = {
        "temperature": temperature.value,
        "temperature_remark": temperature.reason,
        "match_threshold": match_threshold(vectors, labels),
        "unknown_threshold": unknown_threshold(logits, temperature.value),
    }
    config = config.model_copy(update=measures)
    ImageModel(network.cpu(), config).save_pretrained(run.model_dir)
    write_receipt(run, world, trained, material, training, measured, sources, copies, results)
    write_report(
        run.report_path,
        title=run.path.name,
        recipe_yaml=recipe.to_yaml(),
        receipt=run.receipt(),
        history=run.history(),
        logits=logits,
        labels=labels,
        images=measured.images,
        class_names=material.catalog.class_names,
        remark=material.remark or None,
        paths=measured.catalog.paths,
    )


def finalize_retrieval(
    run: Run,
    world: DistributedContext,
    trained: Trained,
    material: Material,
    training: Pack,
    measured: Pack,
    sources: str,
    copies: Leak | None,
) -> None:
    """`finish` of a run by a protocol: recall on the test classes and all that belongs to it."""
    assert material.divided is not None
    recipe = run.recipe
    config = config_of(recipe, training.catalog, material.remark, trained.state.start)
    model = ImageModel(trained.network.to(world.device), config)
    model.save_pretrained(run.model_dir)  # first: whatever may be wrong with the test images, it is not lost
    found = evaluate_retrieval(
        model,
        material.divided,
        measured,
        crop_boxes=recipe.data.crop_boxes,
        flip=recipe.evaluation.flip,
        with_duplicates=True,
        batch_size=recipe.evaluation.batch_size,
    )
    vectors = found.embeddings
    if recipe.evaluation.flip:  # a gallery's vectors are of single images
        vectors = model.embed(found.images, batch_size=recipe.evaluation.batch_size)
    config = config.model_copy(update={"match_threshold": match_threshold(vectors, found.labels)})
    ImageModel(model.network, config).save_pretrained(run.model_dir)
    results = {**found.metrics, "split": "test", "weights": kind_of_weights(trained)}
    write_receipt(run, world, trained, material, training, measured, sources, copies, results)
    write_retrieval_report(
        run.report_path,
        title=run.path.name,
        recipe_yaml=recipe.to_yaml(),
        receipt=run.receipt(),
        history=run.history(),
        embeddings=found.embeddings,
        labels=found.labels,
        images=found.images,
        class_names=measured.catalog.class_names,
        card=results["card"],
        remark=material.remark or None,
    )


def kind_of_weights(trained: Trained) -> str:
    """Which weights a result is of, in words."""
    return "best of the evaluations" if trained.state.stopped_early else "last"


def config_of(recipe: Recipe, catalog: Catalog, remark: str, start: Mapping[str, str] | None) -> ModelConfig:
    """What the model folder says of a network trained by a recipe on these classes, from that start."""
    return ModelConfig(
        name=recipe.model.name,
        options=recipe.model.options,
        head=recipe.model.head,
        protocol=recipe.data.protocol,
        start=start["dataset"] if start else "",
        crop_boxes=recipe.data.crop_boxes,
        crop_mode=recipe.data.crop_mode,
        class_names=catalog.class_names,
        class_ids=catalog.class_ids,
        image_size=recipe.data.image_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        val_fraction=recipe.data.val_fraction,
        split_seed=recipe.data.split_seed,
        dataset=catalog.name,
        remark=remark,
    )


def write_receipt(
    run: Run,
    world: DistributedContext,
    trained: Trained,
    material: Material,
    training: Pack,
    measured: Pack,
    sources: str,
    copies: Leak | None,
    results: dict[str, Any],
) -> None:
    """Write `receipt.json`: the results, and how they came about."""
    recipe, network = run.recipe, trained.network
    run.write_receipt(
        results,
        seconds=trained.state.seconds,
        cpu_seconds=round(trained.state.cpu_seconds, 3),
        steps=trained.state.step,
        epochs=recipe.training.epochs,
        batch_size=recipe.training.batch_size,
        processes=world.size,
        threads=torch.get_num_threads(),
        parameters=count(network),
        model=recipe.model.name,
        start=trained.state.start,
        loss=recipe.loss.name,
        data={
            "name": material.catalog.name,
            "fingerprint": material.catalog.fingerprint,
            "content": content_of(training, measured),
            "train": len(training.images),
            material.measured: len(measured.images),
            "classes": len(training.catalog.class_names),
            "skipped": len(training.skipped) + len(measured.skipped),
            "copies": None if copies is None else {"count": copies.count, "sentence": copies.sentence},
            "remark": material.remark,
        },
        seed=recipe.training.seed,
        device=str(world.device),
        gpu=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        command=without_passwords(shlex.join(["lookalike", *sys.argv[1:]])),
        sources=sources,
    )


def count(network: nn.Module) -> int:
    """Trainable numbers of a network."""
    return sum(p.numel() for p in network.parameters())
