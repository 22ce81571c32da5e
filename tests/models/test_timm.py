"""timm backbones as networks of ours; where timm is not installed, that this is said."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from lookalike.errors import InputError
from lookalike.extras import install_command
from lookalike.models.registry import create_model

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="needs the extra timm")


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_the_extra_is_named() -> None:
    with pytest.raises(InputError, match="timm/resnet18: timm cannot be imported") as caught:
        create_model("timm/resnet18", 5)
    assert caught.value.remedy == f"Install it: {install_command('timm')}"


@needs_timm
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
        assert network(x).shape == (2, 5)
        features = network.forward_features(x)
    assert features.ndim == 4
    assert features.shape[:2] == (2, network.num_features)
    assert network.head.out_features == 5


@needs_timm
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
