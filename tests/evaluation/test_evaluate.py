"""Evaluating a saved model: what is measured, how it is named, and classes in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data import synthetic
from lookalike.data.catalog import UNLABELLED, Catalog, Row
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError
from lookalike.evaluation.classification import summary
from lookalike.evaluation.evaluate import (
    ClassificationResult,
    evaluate,
    evaluate_classification,
    model_labels,
    outputs_of,
    read_as_trained,
)
from lookalike.image import decode
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig

SIZE = 16
ANIMALS = synthetic.CLASS_NAMES[:3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` and `val/`, each with as many pictures of a class as its number and two."""
    folder = tmp_path_factory.mktemp("album")
    for part, split in enumerate(("train", "val")):
        for label, name in enumerate(ANIMALS):
            (folder / split / name).mkdir(parents=True)
            for number in range(label + 2):
                picture = synthetic.render(name, np.random.default_rng([part, label, number]), SIZE)
                Image.fromarray(picture).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def catalog(album: Path) -> Catalog:
    return load_dataset(album)


def model_of(ids: tuple[str, ...], *, temperature: float = 1.0) -> ImageModel:
    """A model whose answers depend on the image and on the id of the class, not on the class's place."""
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=tuple(mark.title() for mark in ids),
        class_ids=ids,
        temperature=temperature,
        dataset="animals",
    )
    torch.manual_seed(0)
    network = create_model(config.name, config.num_classes, config.options)
    with torch.no_grad():
        network(torch.randn(8, 3, SIZE, SIZE))
        order = [sorted(ids).index(mark) for mark in ids]
        network.head.weight.copy_(network.head.weight.clone()[order] * 50)
        network.head.bias.copy_(network.head.bias.clone()[order])
    return ImageModel(network, config)


def test_the_results_are_those_of_the_logits(catalog: Catalog) -> None:
    model = model_of(tuple(ANIMALS), temperature=1.5)
    measured = evaluate_classification(model, catalog)
    rows = catalog.rows_of("val")
    assert measured.images.tolist() == [decode(catalog.read_bytes(row), SIZE).tolist() for row in rows]
    assert measured.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    logits = outputs_of(model.network, measured.images, view="outputs", mean=model.config.mean, std=model.config.std)
    assert measured.logits.tolist() == logits.tolist()
    numbers = summary(logits, measured.labels, class_names=model.config.class_names, temperature=1.5)
    how = {"temperature_remark": "", "split": "val", "crop": "single", "flip": False, "image_size": SIZE}
    assert measured.metrics == {**numbers, **how}
    assert measured.metrics["temperature"] == 1.5


def test_evaluate_takes_names_as_well(catalog: Catalog, tmp_path: Path) -> None:
    model = model_of(tuple(ANIMALS))
    model.save_pretrained(tmp_path / "model")
    by_name = evaluate(tmp_path / "model", catalog.root, split="train")
    assert isinstance(by_name, ClassificationResult)
    assert by_name.metrics == evaluate_classification(model, catalog, "train").metrics
    assert repr(by_name).startswith(f"<ClassificationResult: {catalog.name} train, {by_name.metrics['n']} images")


@pytest.mark.parametrize(
    "options", [{"protocol": "half-zero-shot", "split": "val"}, {"with_duplicates": True}, {"protocol": "nonsense"}]
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], catalog: Catalog) -> None:
    with pytest.raises(InputError):
        evaluate(model_of(tuple(ANIMALS)), catalog, **options)


def test_the_flip_is_named_and_changes_the_logits(catalog: Catalog) -> None:
    model = model_of(tuple(ANIMALS))
    plain, flipped = evaluate_classification(model, catalog), evaluate_classification(model, catalog, flip=True)
    assert (plain.metrics["flip"], flipped.metrics["flip"]) == (False, True)
    assert np.abs(plain.logits - flipped.logits).max() > 1e-3


def test_the_split_is_the_one_asked_for_and_named(catalog: Catalog) -> None:
    training = evaluate_classification(model_of(tuple(ANIMALS)), catalog, "train")
    assert training.metrics["split"] == "train"
    assert training.images.tolist() != evaluate_classification(model_of(tuple(ANIMALS)), catalog).images.tolist()


def test_classes_are_matched_by_id_whatever_their_order(catalog: Catalog) -> None:
    one, other = model_of(tuple(ANIMALS)), model_of(tuple(reversed(ANIMALS)))
    assert model_labels(one, catalog).tolist() == [0, 1, 2]
    assert model_labels(other, catalog).tolist() == [2, 1, 0]
    straight, crossed = evaluate_classification(one, catalog), evaluate_classification(other, catalog)
    assert crossed.labels.tolist() == [2 - label for label in straight.labels]
    np.testing.assert_allclose(crossed.logits[:, ::-1], straight.logits, atol=1e-4)
    assert crossed.metrics["per_class"] == straight.metrics["per_class"]
    assert crossed.metrics["nll"] == pytest.approx(straight.metrics["nll"], abs=1e-4)
    assert len(set(straight.metrics["per_class"].values())) > 1, "an order that is lost would be seen"


def test_a_model_may_know_more_classes_than_the_data(catalog: Catalog) -> None:
    model = model_of(("aardvark", *ANIMALS, "zebra"))
    measured = evaluate_classification(model, catalog)
    assert measured.logits.shape == (9, 5)
    assert set(measured.labels.tolist()) == {1, 2, 3}
    assert set(measured.metrics["per_class"]) == {mark.title() for mark in ANIMALS}


def test_a_class_that_the_model_does_not_know_is_named(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=f"does not know the class '{ANIMALS[2]}'") as caught:
        evaluate_classification(model_of((*ANIMALS[:2], "zebra")), catalog)
    assert "trained on animals, 3 classes" in caught.value.remedy


def test_an_empty_split_is_refused(catalog: Catalog) -> None:
    with pytest.raises(InputError, match="the test split has no images"):
        evaluate_classification(model_of(tuple(ANIMALS)), catalog, "test")


def test_a_split_without_labels_is_refused(catalog: Catalog) -> None:
    rows = [Row(path, UNLABELLED, "test") for path in catalog.paths]
    bare = Catalog.from_rows(
        rows,
        name="bare",
        root=catalog.root,
        class_names=catalog.class_names,
        class_ids=catalog.class_ids,
        container=catalog.container,
    )
    with pytest.raises(InputError, match="the test split has no labels"):
        evaluate_classification(model_of(tuple(ANIMALS)), bare, "test")


def test_validation_images_are_those_that_the_model_was_not_trained_on(tmp_path: Path) -> None:
    for name in ANIMALS:
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (SIZE, SIZE), (number, 0, 0)).save(tmp_path / name / f"{number}.png")

    def validation(catalog: Catalog) -> list[str]:
        return [catalog.ids[row] for row in catalog.rows_of("val")]

    older = model_of(tuple(ANIMALS)).config
    config = older.model_copy(update={"val_fraction": 0.4, "split_seed": 7})
    trained_with = validation(load_dataset(tmp_path, val_fraction=0.4, split_seed=7))
    assert len(trained_with) == 12
    assert trained_with != validation(load_dataset(tmp_path, val_fraction=0.4)), "a seed that is lost would be seen"
    assert validation(read_as_trained(tmp_path, config)) == trained_with
    assert validation(read_as_trained(tmp_path, older)) == validation(load_dataset(tmp_path))
    asked = read_as_trained(tmp_path, config, val_fraction=0.2, split_seed=0)
    assert validation(asked) == validation(load_dataset(tmp_path, val_fraction=0.2))
    assert validation(read_as_trained(tmp_path, older, split_seed=7)) == validation(
        load_dataset(tmp_path, split_seed=7)
    )


def test_progress_is_told_to_the_end(catalog: Catalog) -> None:
    told: list[tuple[int, int]] = []
    model = model_of(tuple(ANIMALS))
    packed: list[tuple[int, int]] = []
    for _ in range(2):  # the pack is made once
        told.clear()
        evaluate_classification(
            model,
            catalog,
            batch_size=4,
            decoding=lambda *p: packed.append(p),
            progress=lambda *p: told.append(p),
        )
        assert told == [(4, 9), (8, 9), (9, 9)]
        assert packed == [(9, 9)]
