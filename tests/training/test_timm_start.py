"""Training a network of timm from its pretrained weights: their preprocessing is the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lookalike
from lookalike.errors import InputError
from lookalike.models.init_backbone import with_pretrained
from lookalike.models.timm import TimmNetwork, import_timm
from lookalike.recipe import Recipe, load

FAST = {"training.epochs": 1, "training.batch_size": 16, "data.val_fraction": 0.2}


@pytest.mark.parametrize(
    "model",
    [{"options": {"pretrained": True}}, {"init": "default"}, {"init": "NAME"}],
    ids=["pretrained", "the default of a recipe", "named"],
)
def test_size_mean_and_std_are_those_of_the_weights(model: dict[str, Any], small_timm: str) -> None:
    asked = {**model, "name": small_timm}
    if "init" in asked:
        asked["init"] = asked["init"].replace("NAME", small_timm)
    found = with_pretrained(Recipe(model=asked))
    assert (found.model.init, found.model.options) == (small_timm, {})
    cfg = import_timm("x").get_pretrained_cfg("test_resnet.r160_in1k")
    assert (found.data.image_size, found.data.mean, found.data.std) == (160, cfg.mean, cfg.std)


def test_what_the_recipe_sets_is_kept(small_timm: str) -> None:
    overrides = [f"model.name={small_timm}", "model.options={pretrained: true}", "data.image_size=48"]
    found = with_pretrained(load("quickstart", overrides))
    assert found.data.image_size == 48
    assert found.data.mean == import_timm("x").get_pretrained_cfg("test_resnet.r160_in1k").mean


def test_without_pretrained_weights_nothing_is_loaded() -> None:
    recipe = Recipe(model={"name": "timm/test_resnet.r160_in1k"})
    assert with_pretrained(recipe) == recipe
    own = Recipe(model={"init": "default"})
    assert with_pretrained(own) == own


def test_a_run_from_pretrained_weights(small_timm: str, album: Path, tmp_path: Path) -> None:
    settings = {"data.image_size": 64, "optimizer.lr": 1e-9, **FAST}
    changes = {key.replace(".", "__"): value for key, value in settings.items()}
    run = lookalike.train(
        Recipe(),
        data=album,
        out=tmp_path / "run",
        model={"name": small_timm, "options": {"pretrained": True}},
        **changes,
    )
    model = lookalike.load(run.model_dir)
    assert (model.config.name, model.config.image_size, model.config.pooling) == (small_timm, 64, "own")
    assert "licence: apache-2.0" in model.config.start
    assert run.receipt()["start"]["model"] == small_timm
    start = lookalike.load(small_timm)
    assert isinstance(model.network, TimmNetwork)
    theirs = dict(start.network.named_parameters())
    for name, parameter in model.network.named_parameters():
        if not name.startswith("network.fc."):
            assert torch.allclose(parameter, theirs[name], atol=1e-3), name
    assert (model.config.mean, model.config.std) == (start.config.mean, start.config.std)


def test_a_size_that_a_transformer_does_not_take(album: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timm/vit_tiny_patch16_224 does not take images of 64 pixels"):
        lookalike.train(Recipe(model={"name": "timm/vit_tiny_patch16_224"}), data=album, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
