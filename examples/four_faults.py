"""One training, two readings: how a recall can fall while a network learns. See docs/four-faults.md.

    python examples/four_faults.py [CLASSIFIER_RECIPE EMBEDDING_RECIPE [KEY=VALUE ...]]

A classifier is trained on some classes. After each epoch the softmax outputs of images of other classes are read twice:
by Recall@8, and as the third fault does it, with the 8 images of the *least* similar outputs and a cosine above 0.75.
Then the classifier is replaced by an embedding, trained with the multi-similarity loss, and read in both ways again.
Changes such as training.epochs=10 hold for both trainings.

Without recipes it takes half a minute, on built-in pictures. It writes four-faults.json and .html into runs/.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookalike import recipe as recipes
from lookalike.data.loader import Loader
from lookalike.data.pack import pack
from lookalike.evaluation.evaluate import outputs_of
from lookalike.evaluation.retrieval import recall_at_k
from lookalike.models.pretrained import ImageModel
from lookalike.recipe import Recipe
from lookalike.reports.charts import Line, line_chart, percent, plain
from lookalike.training import loop, optim
from lookalike.training.finalize import TrainingData, model_config
from lookalike.training.objective import create_objective
from lookalike.training.run import read_data

K, THRESHOLD = 8, 0.75
SMALL = ["data.protocol=builtin-zero-shot", "data.image_size=32"]
SMALL_CLASSIFIER = [*SMALL, "training.epochs=3"]
SMALL_EMBEDDING = [
    *SMALL,
    "training.epochs=2",
    "model.head={dim: 64}",
    "loss={name: multi_similarity}",
    "data.sampler={classes: 8, images: 8}",
    "optimizer={name: adamw, lr: 0.001, weight_decay: 0.05}",
]
Point = dict[str, float]


def farthest_recall_at_k(vectors: np.ndarray, labels: np.ndarray) -> float:
    """The wrong reading: among the K *least* similar others, is one of the same class, with a cosine above 0.75?"""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, np.inf)  # itself is left out: it would come last
    first = np.argpartition(cosines, K, axis=1)[:, :K]
    hits = (labels[first] == labels[:, None]) & (np.take_along_axis(cosines, first, 1) > THRESHOLD)
    return float(hits.any(1).mean())


def train(recipe: Recipe, material: TrainingData, to: Path) -> list[Point]:
    """Train by a recipe, without the safety of `lookalike.train`; the model goes into the folder `to`."""
    settings, data = recipe.training, recipe.data
    training, test = (
        pack(material.parts[side], data.image_size, crop_boxes=data.crop_boxes, crop_mode=data.crop_mode)
        for side in ("train", "test")
    )
    classes = len(training.catalog.class_names)
    objective = create_objective(recipe, classes)
    objective.network.to(memory_format=torch.channels_last)
    optimizer = optim.make_optimizer(objective.network, objective.loss, recipe.optimizer)
    loader = Loader(
        training.images,
        training.labels,
        classes,
        batch_size=settings.batch_size,
        settings=data.augment,
        mean=data.mean,
        std=data.std,
        seed=settings.seed,
        device=torch.device("cpu"),
        sampler=loop.make_sampler(recipe, training.labels),
    )
    total = loop.count_steps(settings, len(loader))
    curve: list[Point] = []
    losses: list[float] = []
    objective.network.train()
    for step in range(total):
        optim.set_lr(optimizer, optim.lr_at(recipe.schedule, recipe.optimizer.lr, step, total), head_only=False)
        batch = loader.batch(step, loop.resolution(settings, step / total, data.image_size))
        outputs = objective.network(batch.images)
        loss = objective.loss(outputs, batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        epoch = loader.epoch_of(step + 1)
        if int(epoch) > int(loader.epoch_of(step)) or step + 1 == total:
            view: Any = "outputs" if recipe.model.head else "softmax"
            vectors = outputs_of(
                objective.network,
                test.images,
                view=view,
                mean=data.mean,
                std=data.std,
            )
            point = {
                "epoch": round(epoch, 3),
                "loss": float(np.mean(losses)),
                "recall": recall_at_k(vectors, test.labels, (K,))[K],
                "farthest": farthest_recall_at_k(vectors, test.labels),
            }
            print("  ".join(f"{name} {value:.3f}" for name, value in point.items()), flush=True)
            curve.append(point)
            losses.clear()
    ImageModel(objective.network, model_config(recipe, training.catalog, material.remark, None)).save_pretrained(to)
    return curve


def page(curves: dict[str, list[Point]], about: str) -> str:
    """Both trainings, each with its two recalls and its loss, as a page."""
    style = resources.files("lookalike.reports").joinpath("report_style.css").read_text()
    cards = []
    for name, curve in curves.items():

        def points(key: str, curve: list[Point] = curve) -> list[tuple[float, float]]:
            return [(point["epoch"], point[key]) for point in curve]

        readings = [Line(f"Recall@{K}", points("recall")), Line("as told", points("farthest"))]
        recalls = line_chart(readings, about=f"{name}: two recalls", x_name="epoch", form=percent)
        losses = line_chart([Line("loss", points("loss"))], about=f"{name}: loss", x_name="epoch", form=plain)
        cards.append(
            f"<section class='card'><h2>{name}</h2><h3>two readings of the same vectors</h3>{recalls}"
            f"<h3>loss</h3>{losses}</section>"
        )
    style += (
        "body { margin: 24px } main { display: grid; grid-template-columns: 1fr 1fr; gap: 20px } .card { margin: 0 }"
    )
    head = f"<!doctype html><meta charset=utf-8><title>Four faults</title><style>{style}</style>"
    return f"{head}<p>{about}</p><main>{''.join(cards)}</main>"


def main(arguments: list[str]) -> None:
    """Run the example."""
    if arguments:
        first, second, *changes = arguments
        classifier, embedding = recipes.load(first, changes), recipes.load(second, changes)
    else:
        classifier, embedding = (recipes.load("quickstart", own) for own in (SMALL_CLASSIFIER, SMALL_EMBEDDING))
    material = read_data(classifier)
    curves: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "classifier")
        print("the classifier, by its softmax outputs")
        curves["Classifier, softmax outputs"] = train(classifier, material, start)
        print("the embedding that takes its place")
        cut = embedding.model_copy(update={"model": embedding.model.model_copy(update={"init": str(start)})})
        curves["Embedding, multi-similarity"] = train(cut, material, Path(folder, "embedding"))
    about = f"{material.catalog.name}: {len(material.parts['test']):,} images of classes never seen"
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    (runs / "four-faults.json").write_text(json.dumps({"about": about, "curves": curves}, indent=1), encoding="utf-8")
    (runs / "four-faults.html").write_text(page(curves, about), encoding="utf-8")
    print(f"\n{about}\nlook at {runs / 'four-faults.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
