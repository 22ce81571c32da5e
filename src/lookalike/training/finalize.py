"""The end of a run: measure the trained network, then write model, receipt and report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.data.catalog import Catalog, Split
from lookalike.data.copies import Leak
from lookalike.data.pack import Pack
from lookalike.errors import without_passwords
from lookalike.evaluation.calibration import fit_temperature, unknown_threshold
from lookalike.evaluation.classification import is_at_chance, summary
from lookalike.evaluation.evaluate import evaluate_retrieval, outputs_of
from lookalike.evaluation.pair_similarity import match_threshold
from lookalike.evaluation.protocols import Divided
from lookalike.models.pretrained import ImageModel
from lookalike.models.serialization import TIMM, ModelConfig
from lookalike.recipe import Recipe
from lookalike.reports.classification import ImageRows, write_report
from lookalike.reports.retrieval import write_retrieval_report
from lookalike.run import Run
from lookalike.training.distributed import DistributedContext
from lookalike.training.loop import Trained, content_of


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Args:
        catalog: the whole data set.
        parts: "train" and the split to evaluate on: "val", or "test" of a protocol.
        divided: the data set as divided by a protocol; None without one.
    """

    catalog: Catalog
    parts: Mapping[Split, Catalog]
    divided: Divided | None = None

    @property
    def evaluation_split(self) -> Split:
        return "test" if self.divided else "val"

    @property
    def remark(self) -> str:
        return self.divided.remark if self.divided else self.catalog.remark


@dataclass(frozen=True)
class FinishedTraining:
    """All that the end of a run needs.

    Args:
        run: the run folder.
        context: the processes of the run; this is the main one.
        trained: the trained network.
        data: the data of the run.
        training: the images trained on.
        evaluation: the images to measure on.
        commit: commit of the sources when the run was started.
        copies: evaluation images that are copies of training images.
    """

    run: Run
    context: DistributedContext
    trained: Trained
    data: TrainingData
    training: Pack
    evaluation: Pack
    commit: str
    copies: Leak | None


def finalize(finished: FinishedTraining) -> None:
    """Measure the trained network and write `model/`, `receipt.json` and `report.html`.

    Raises:
        InputError: the outputs cannot be measured, or a file cannot be written.
    """
    if finished.data.divided:
        finalize_retrieval(finished, finished.data.divided)
    else:
        finalize_classification(finished)


def finalize_classification(finished: FinishedTraining) -> None:
    """`finalize` for a run without a protocol: accuracy, calibration and a fitted temperature."""
    run, trained, data, evaluation = finished.run, finished.trained, finished.data, finished.evaluation
    recipe = run.recipe
    network = trained.network.to(finished.context.device)
    logits = outputs_of(
        network,
        evaluation.images,
        view="outputs",
        mean=recipe.data.mean,
        std=recipe.data.std,
        batch_size=recipe.evaluation.batch_size,
        flip=recipe.evaluation.flip,
    )
    labels = evaluation.labels
    config = model_config(recipe, finished.training.catalog, data.remark, trained.state.start)
    vectors = ImageModel(network, config).embed(evaluation.images, batch_size=recipe.evaluation.batch_size)
    held_out = HeldOut(logits, labels, vectors, evaluation.images, evaluation.catalog.paths)
    results = save_classifier(run, network, config, held_out)
    results |= {"split": "val", "flip": recipe.evaluation.flip, "weights": kind_of_weights(trained)}
    write_receipt(finished, results)
    write_classifier_report(run, held_out, config)


@dataclass(frozen=True)
class HeldOut:
    """Images that were not trained on, and what a classifier makes of them.

    Args:
        logits: (N, C) float32.
        labels: (N,) int64.
        vectors: (N, D) float32 of length 1, as `ImageModel.embed` gives them.
        images: N, for the report.
        paths: N.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    vectors: NDArray[np.float32]
    images: ImageRows
    paths: Sequence[str]


def save_classifier(run: Run, network: nn.Module, config: ModelConfig, held_out: HeldOut) -> dict[str, Any]:
    """Write `model/`, with temperature and thresholds by the held-out images; return the results for the receipt."""
    logits, labels = held_out.logits, held_out.labels
    temperature = fit_temperature(logits, labels)
    results = {
        **summary(logits, labels, class_names=config.class_names, temperature=temperature.value),
        "at_chance": is_at_chance(logits, labels),
        "temperature_remark": temperature.reason,
        "crop": "single",
        "image_size": config.image_size,
    }
    measures = {
        "temperature": temperature.value,
        "temperature_remark": temperature.reason,
        "match_threshold": match_threshold(held_out.vectors, labels),
        "unknown_threshold": unknown_threshold(logits, temperature.value),
    }
    ImageModel(network.cpu(), config.model_copy(update=measures)).save_pretrained(run.model_dir)
    return results


def write_classifier_report(run: Run, held_out: HeldOut, config: ModelConfig) -> None:
    """Write `report.html` of a run whose receipt is written."""
    write_report(
        run.report_path,
        title=run.name,
        recipe_yaml=run.recipe.to_yaml(),
        receipt=run.receipt(),
        history=run.history(),
        logits=held_out.logits,
        labels=held_out.labels,
        images=held_out.images,
        class_names=config.class_names,
        remark=config.remark or None,
        paths=held_out.paths,
    )


def finalize_retrieval(finished: FinishedTraining, divided: Divided) -> None:
    """`finalize` for a run with a protocol: recall on the test classes."""
    run, trained, evaluation = finished.run, finished.trained, finished.evaluation
    recipe, remark = run.recipe, finished.data.remark
    config = model_config(recipe, finished.training.catalog, remark, trained.state.start)
    model = ImageModel(trained.network.to(finished.context.device), config)
    model.save_pretrained(run.model_dir)  # first, so that no problem of the test images can lose it
    found = evaluate_retrieval(
        model,
        divided,
        evaluation,
        crop_boxes=recipe.data.crop_boxes,
        flip=recipe.evaluation.flip,
        with_duplicates=True,
        batch_size=recipe.evaluation.batch_size,
    )
    vectors = found.embeddings
    if recipe.evaluation.flip:  # the vectors of a gallery are not averaged with mirrored images
        vectors = model.embed(found.images, batch_size=recipe.evaluation.batch_size)
    config = config.model_copy(update={"match_threshold": match_threshold(vectors, found.labels)})
    ImageModel(model.network, config).save_pretrained(run.model_dir)
    results = {**found.metrics, "split": "test", "weights": kind_of_weights(trained)}
    write_receipt(finished, results)
    write_retrieval_report(
        run.report_path,
        title=run.name,
        recipe_yaml=recipe.to_yaml(),
        receipt=run.receipt(),
        history=run.history(),
        embeddings=found.embeddings,
        labels=found.labels,
        images=found.images,
        class_names=evaluation.catalog.class_names,
        card=results["card"],
        remark=remark or None,
    )


def kind_of_weights(trained: Trained) -> str:
    """Which weights were measured, for the results."""
    return "best of the evaluations" if trained.state.stopped_early else "last"


def model_config(recipe: Recipe, catalog: Catalog, remark: str, start: Mapping[str, str] | None) -> ModelConfig:
    """Configuration of a model trained with a recipe on the classes of a catalog, from initial weights `start`."""
    return ModelConfig(
        name=recipe.model.name,
        options=recipe.model.options,
        head=recipe.model.head,
        unit_features=recipe.model.unit_features,
        pooling="own" if recipe.model.name.startswith(TIMM) and not recipe.model.head else "mean",
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


def write_receipt(finished: FinishedTraining, results: dict[str, Any]) -> None:
    """Write `receipt.json`: the results and how they were obtained."""
    run, trained, data = finished.run, finished.trained, finished.data
    training, evaluation, copies = finished.training, finished.evaluation, finished.copies
    recipe, network, device = run.recipe, trained.network, finished.context.device
    run.write_receipt(
        results,
        seconds=trained.state.seconds,
        cpu_seconds=round(trained.state.cpu_seconds, 3),
        steps=trained.state.step,
        epochs=recipe.training.epochs,
        batch_size=recipe.training.batch_size,
        precision=trained.state.precision,
        processes=finished.context.world_size,
        threads=torch.get_num_threads(),
        parameters=sum(p.numel() for p in network.parameters()),
        model=recipe.model.name,
        start=trained.state.start,
        loss=recipe.loss.name,
        data={
            "name": data.catalog.name,
            "fingerprint": data.catalog.fingerprint,
            "content": content_of(training, evaluation),
            "train": len(training.images),
            data.evaluation_split: len(evaluation.images),
            "classes": len(training.catalog.class_names),
            "skipped": len(training.skipped) + len(evaluation.skipped),
            "copies": None if copies is None else {"count": copies.count, "sentence": copies.sentence},
            "remark": data.remark,
        },
        seed=recipe.training.seed,
        device=str(device),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        command=without_passwords(shlex.join(["lookalike", *sys.argv[1:]])),
        commit=finished.commit,
    )
