"""Embedding heads and the networks that carry them; models of embeddings, saved and used as starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookalike.errors import InputError
from lookalike.models.heads import EmbeddingHead, EmbeddingNetwork, GeM
from lookalike.models.init_backbone import start_from
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.runtime import TorchRuntime
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head, Model

OPTIONS: dict[str, dict[str, Any]] = {
    "simple_cnn": {},
    "weave": {"widths": [16, 32], "pairs": [1, 1]},
    "resnet18": {"width": 8, "stem": "patch"},
    "cubs_resnet_2": {"width": 8, "stem": "patch", "placement": "stage"},
}


def test_gem_is_the_average_for_p_1_and_near_the_maximum_for_a_large_p() -> None:
    x = torch.rand(2, 3, 4, 4) + 0.1
    assert torch.allclose(GeM(p=1.0)(x), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(GeM(p=100.0)(x), x.amax((2, 3)), atol=0.06)
    gem = GeM()
    slow = (x**3).mean((2, 3)) ** (1 / 3)
    assert torch.allclose(gem(x), slow, atol=1e-5)
    gem(x).sum().backward()
    assert gem.p.grad is not None
    assert gem.p.grad.abs() > 0


@pytest.mark.parametrize("pooling", ["avg", "max", "both", "gem"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_head_gives_unit_vectors_and_passes_a_gradient(pooling: Any, kind: Any) -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(6, Head(dim=5, pooling=pooling, kind=kind, hidden=64))  # few units may all be off for an image
    x = torch.rand(4, 6, 3, 3, requires_grad=True)
    vectors = head(x)
    assert vectors.shape == (4, 5)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    vectors[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_head_stands_in_the_place_of_every_networks_classifier(name: str) -> None:
    plain = create_model(name, 200, OPTIONS[name])
    network = create_model(name, 7, OPTIONS[name], Head(dim=9))
    assert isinstance(network, EmbeddingNetwork)
    x = torch.randn(2, 3, 64, 64)
    network.eval()
    assert network(x).shape == (2, 9)
    assert network.forward_features(x).shape[1] == network.num_features
    assert not any(name.startswith("backbone.head") for name in network.state_dict())
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in plain.parameters())
    network.train()
    network(torch.randn(4, 3, 64, 64))[:, 0].sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def pretrained(name: str = "resnet18", head: Head | None = None, seed: int = 0, **changes: Any) -> ImageModel:
    about = {"options": OPTIONS[name], "image_size": 32, "mean": (0.5,) * 3, "std": (0.3,) * 3, "head": head}
    names = ("a", "b", "c")
    config = ModelConfig(name=name, class_names=names, class_ids=names, **{**about, **changes})
    torch.manual_seed(seed)
    return ImageModel(create_model(name, 3, config.options, head), config)


def test_a_model_of_embeddings_comes_back_the_same_and_refuses_to_name_classes(tmp_path: Path) -> None:
    model = pretrained(head=Head(dim=9, pooling="gem"))
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    vectors = again.embed(images)
    assert vectors.shape == (5, 9)
    assert again.embedding_dim == 9
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors, model.embed(images))
    assert again.config.head == Head(dim=9, pooling="gem")
    with pytest.raises(InputError):
        again.predict(images)


def test_the_head_is_part_of_the_fingerprint_and_an_older_folder_keeps_its_own(tmp_path: Path) -> None:
    assert "head" not in pretrained().config.of_vectors()
    one, other = (pretrained(head=Head(dim=9, pooling=pooling)) for pooling in ("avg", "max"))
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("pooling", ["avg", "max", "both", "gem"])
def test_a_projection_trains_through_its_layers_and_answers_with_what_was_pooled(pooling: Any) -> None:
    head = EmbeddingHead(6, Head(dim=5, pooling=pooling, projection=True))
    plain = EmbeddingHead(6, Head(dim=5, pooling=pooling))
    plain.load_state_dict(head.state_dict())
    x = torch.rand(4, 6, 3, 3)
    assert torch.equal(head(x), plain(x))
    found = head.eval()(x)
    assert found.shape == (4, head.dim) == (4, 12 if pooling == "both" else 6)
    assert torch.allclose(found, torch.nn.functional.normalize(head.pool(x), dim=1))
    assert plain.dim == 5


def test_a_model_with_a_projection_says_how_long_its_vectors_are(tmp_path: Path) -> None:
    model = pretrained(head=Head(dim=9, projection=True))
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    channels = again.network.num_features
    assert again.embed(pictures).shape == again.logits(pictures).shape == (3, channels)
    assert again.embedding_dim == channels != 9
    assert f"a vector of {channels} numbers" in (tmp_path / "README.md").read_text()
    assert TorchRuntime(again).dim == channels
    assert "projection" not in pretrained(head=Head(dim=9)).config.of_vectors()  # folders of before it was there


@pytest.mark.parametrize("from_head", [None, Head(dim=4)], ids=["classifier", "embedding"])
@pytest.mark.parametrize("to_head", [None, Head(dim=9)], ids=["classifier", "embedding"])
def test_a_start_gives_the_backbone_and_leaves_the_head(
    from_head: Head | None, to_head: Head | None, tmp_path: Path
) -> None:
    trained = pretrained(head=from_head, seed=1, dataset="pets")
    trained.save_pretrained(tmp_path)
    model = Model(name="resnet18", options=OPTIONS["resnet18"], init=str(tmp_path), head=to_head)
    torch.manual_seed(2)
    network = create_model(model.name, 5, model.options, to_head)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = start_from(network, model)
    assert (start.model, start.dataset, start.fingerprint) == (str(tmp_path), "pets", trained.fingerprint)
    x = torch.randn(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network.forward_features(x), trained.network.eval().forward_features(x))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith("head.") for name in changed)


def test_a_start_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    pretrained("cubs_resnet_2").save_pretrained(tmp_path / "cubs")
    pretrained(options={"width": 16, "stem": "patch"}).save_pretrained(tmp_path / "wide")
    network = create_model("resnet18", 5, OPTIONS["resnet18"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for folder, words in (("cubs", "is a cubs_resnet_2, not a resnet18"), ("wide", "does not fit the network")):
        model = Model(name="resnet18", options=OPTIONS["resnet18"], init=str(tmp_path / folder))
        with pytest.raises(InputError, match=words):
            start_from(network, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_blocks_that_the_start_lacks_are_not_left_at_random(tmp_path: Path) -> None:
    pretrained("cubs_resnet_2", options={**OPTIONS["cubs_resnet_2"], "placement": "last"}).save_pretrained(tmp_path)
    model = Model(name="cubs_resnet_2", options=OPTIONS["cubs_resnet_2"], init=str(tmp_path))
    with pytest.raises(InputError, match="does not fit the network"):
        start_from(create_model(model.name, 5, model.options), model)
