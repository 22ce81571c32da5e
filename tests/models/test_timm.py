"""timm backbones as networks of ours; where timm or torchvision cannot be used, that this is said."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lookalike.errors import InputError
from lookalike.extras import install_command
from lookalike.models.heads import EmbeddingNetwork
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.runtime import TorchRuntime
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm/resnet18: timm cannot be imported") as caught:
        create_model("timm/resnet18", 5)
    assert caught.value.remedy == f"Install it: {install_command('timm')}"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),  # tokens
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}),  # channels last
    ],
)
def test_a_backbone_keeps_the_promise(name: str, options: dict[str, Any]) -> None:
    network = create_model(f"timm/{name}", 5, options).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, features = network(x), network.forward_features(x)
        feature_map, vectors = network.feature_map(features), network.pooled(features)
        assert torch.allclose(network.forward_head(features), logits, atol=1e-5)
    assert logits.shape == (2, 5)
    assert feature_map.ndim == 4
    assert feature_map.shape[:2] == (2, network.num_features)
    assert vectors.shape[0] == 2
    assert torch.allclose(network.head(vectors), logits, atol=1e-5)
    assert network.head.out_features == 5


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_a_backbone_takes_an_embedding_head(name: str) -> None:
    options = {"img_size": 64} if name.startswith("vit") else {}
    network = create_model(f"timm/{name}", 5, options, Head(dim=8, pooling="gem")).eval()
    assert isinstance(network, EmbeddingNetwork)
    with torch.no_grad():
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 8)


@pytest.mark.parametrize("name", ["test_nfnet", "test_byobnet", "test_efficientnet"])
def test_networks_with_layers_of_their_own_are_prepared_without_a_change(name: str) -> None:
    """Their convolutions normalise weights or pad by the input, and their batch norms contain an activation."""
    torch.manual_seed(0)
    network = create_model(f"timm/{name}", 3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    config = ModelConfig(
        name=f"timm/{name}", image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, pooling="own",
        class_names=("cat", "dog", "emu"), class_ids=("cat", "dog", "emu"),
    )  # fmt: skip
    model = ImageModel(network, config)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    prepared = TorchRuntime(model).run(images)
    np.testing.assert_allclose(prepared.vectors, model.embed(images), atol=1e-5)
    np.testing.assert_allclose(prepared.logits, model.logits(images), atol=1e-4)


def test_timm_is_imported_beside_any_build_of_torchvision() -> None:
    """Beside a CPU build of PyTorch, the operators of PyPI's torchvision cannot be loaded; timm does not use them."""
    code = "from lookalike.models.timm import import_timm; print(import_timm('x').is_model('resnet18'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_a_torchvision_that_does_not_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("built for another PyTorch")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(InputError, match=r"timm/resnet18: .*built for another PyTorch") as caught:
        create_model("timm/resnet18", 5)
    assert "torchvision" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("resnt18", {}, "Did you mean 'resnet18'"),
        ("hf-hub:owner/name", {}, "no model"),
        ("resnet18", {"wdth": 3}, "wdth"),
        ("resnet18", {"checkpoint_path": "weights.pth"}, "checkpoint_path"),
        ("resnet18", {"num_classes": 3}, "num_classes"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        create_model(f"timm/{name}", 5, options)
