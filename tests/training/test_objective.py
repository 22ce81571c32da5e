"""Runs that learn embeddings: they learn, they stop and go on to the same bits, whatever the loss carries with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookalike.data.catalog import Catalog, Row
from lookalike.data.pack import Pack, pack
from lookalike.errors import InputError
from lookalike.evaluation.protocols import named
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.distributed import init_distributed
from lookalike.training.loop import Trained, train
from lookalike.training.objective import create_objective

RECIPE = """
data:
  image_size: 32
  protocol: builtin-zero-shot
  sampler: {classes: 6, images: 4}
  augment: {crop: resized, scale: [0.5, 1.0], flip: 0.5}
model: {name: cubs_resnet_2, options: {stem: small, width: 8, features: 32, tokens: 8}, head: {dim: 16}}
loss: {name: multi_similarity}
optimizer: {name: adamw, lr: 0.003}
training: {epochs: 2, batch_size: 24, evaluate_every: 2, checkpoint_seconds: 1000, precision: float32}
"""
STEPS = 10  # 2 epochs of 120 images


@pytest.fixture(scope="module")
def sides(pictures: Catalog, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Pack]:
    """Ten pictures of each of 12 classes to train on, and as many of 12 others."""
    divided = named("builtin-zero-shot").divide(pictures.select(pictures.rows_of("train")))
    cache = tmp_path_factory.mktemp("packs")
    return pack(divided.training, 32, cache=cache), pack(divided.test, 32, cache=cache)


def go(root: Path, name: str, sides: tuple[Pack, Pack], *overrides: str, on_record: Any = None) -> tuple[Run, Trained]:
    path = root / name
    recipe = Recipe.from_yaml(RECIPE, overrides=overrides)
    run = Run.open(path) if path.exists() else Run.create(root / name, recipe)
    return run, train(run, init_distributed("cpu"), *sides, on_record=on_record)


def evaluations(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.history() if record["kind"] == "eval"]


def patterns(seed: int, folder: Path) -> Pack:
    """Twelve classes of ten pictures: a class is a pattern of 4 × 4 fields; every picture has a cast of its own."""
    generator = np.random.default_rng(seed)
    shapes = np.kron(generator.choice([-1, 1], (12, 4, 4)), np.ones((8, 8)))  # (12, 32, 32)
    cast = generator.uniform(-70, 70, (12, 10, 1, 1, 3))
    images = 128 + 30 * shapes[:, None, :, :, None] + cast + generator.normal(0, 10, (12, 10, 32, 32, 3))
    rows = [Row(f"{label}/{number}", label, "train") for label in range(12) for number in range(10)]
    names = [f"class {label}" for label in range(12)]
    catalog = Catalog.from_rows(rows, root=Path(), class_names=names, name="patterns")
    folder.mkdir()
    (folder / "pack.json").write_text(json.dumps({"sha256": f"of seed {seed}"}))
    return Pack(images.clip(0, 255).astype(np.uint8).reshape(-1, 32, 32, 3), catalog, (), folder)


def test_recall_rises_with_training_on_classes_never_seen(root: Path, tmp_path: Path) -> None:
    changes = ["training.epochs=12", "training.evaluate_every=4", "data.augment={crop: none, flip: 0}"]
    run, trained = go(root, "long", (patterns(0, tmp_path / "0"), patterns(1, tmp_path / "1")), *changes)
    first, *_, last = (record["recall_at_1"] for record in evaluations(run))
    assert last > first + 0.1
    assert last > 4 * 9 / 119  # chance
    assert trained.state.best_score == max(record["recall_at_1"] for record in evaluations(run))
    record = evaluations(run)[-1]
    assert record["recall_at_1"] <= record["recall_at_2"] <= record["recall_at_4"] <= record["recall_at_8"]


LOSSES = {
    "multi-similarity": [],
    "proxies": ["loss.name=proxy_anchor", "optimizer.head_lr_scale=10", "training.head_warmup=0.3"],
    "memory": ["loss.memory=48", "training.ema_decay=0.9"],
    "frozen norms": ["training.freeze_bn=true"],
    "classifier": ["model.head=null", "loss.name=cross_entropy"],
}


@pytest.mark.parametrize("changes", LOSSES.values(), ids=LOSSES)
def test_stopped_and_resumed_is_bit_identical(changes: list[str], sides: tuple[Pack, Pack], root: Path) -> None:
    def stop(record: dict[str, Any], total: int) -> None:
        assert total == STEPS
        if (record["kind"], record["step"]) == ("train", 6):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(root, "broken", sides, *changes, on_record=stop)
    _, resumed = go(root, "broken", sides)
    _, whole = go(root, "whole", sides, *changes)
    ours, theirs = resumed.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    content = [torch.load(root / name / "checkpoint" / "last.pt", weights_only=True) for name in ("broken", "whole")]
    assert content[0]["loss"].keys() == content[1]["loss"].keys()
    assert all(torch.equal(content[0]["loss"][name], content[1]["loss"][name]) for name in content[1]["loss"])


def test_a_classifier_is_measured_by_its_features_and_its_softmax(sides: tuple[Pack, Pack], root: Path) -> None:
    run, _ = go(root, "classifier", sides, *LOSSES["classifier"])
    (record,) = evaluations(run)
    names = {
        f"{name}_{k}" for name in ("recall_at", "softmax_recall_at", "softmax_threshold_recall_at") for k in (1, 8)
    }
    assert names <= record.keys()
    assert record["softmax_threshold_recall_at_8"] <= record["softmax_recall_at_8"]


def test_a_start_is_where_training_begins(sides: tuple[Pack, Pack], root: Path) -> None:
    from lookalike.models.pretrained import ImageModel
    from lookalike.training.finalize import model_config

    classifier = Recipe.from_yaml(RECIPE, overrides=[*LOSSES["classifier"], "training.seed=5"])
    network = create_objective(classifier, 12).network
    ImageModel(network, model_config(classifier, sides[0].catalog, "", None)).save_pretrained(root / "start")
    recipe = Recipe.from_yaml(RECIPE, overrides=[f"model.init={root / 'start'}"])
    task = create_objective(recipe, 12)
    assert task.start is not None
    assert task.start.model == str(root / "start")
    x = torch.randn(2, 3, 32, 32)
    features = task.network.eval().forward_features(x)  # type: ignore[operator]
    assert torch.equal(features, network.eval().forward_features(x))  # type: ignore[operator]


def test_more_classes_in_a_batch_than_there_are_is_refused(sides: tuple[Pack, Pack], root: Path) -> None:
    changes = ["data.sampler={classes: 13, images: 2}", "training.batch_size=26"]
    with pytest.raises(InputError, match=r"data\.sampler\.classes=13.*12"):
        go(root, "many", sides, *changes)
