"""Backbones of timm (https://github.com/huggingface/pytorch-image-models); an optional dependency."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lookalike.errors import InputError, nearest
from lookalike.extras import missing

# Options by which timm would read a pickle, or create another model than its name says.
REFUSED = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes"})


class TimmNetwork(nn.Module):
    """A timm model with the interface that `create_model` describes.

    Args:
        name: as timm knows it, such as "convnext_atto" or "resnet18.a1_in1k".
        num_classes: outputs of the classifier.
        pretrained: start from weights of timm, which are downloaded, instead of random ones.
        options: keyword arguments of `timm.create_model`.

    Raises:
        InputError: timm is not installed, it has no such model, a value it refuses, or weights it cannot get.
    """

    def __init__(self, name: str, num_classes: int, /, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise missing(f"timm/{name}: timm cannot be imported ({error}).", "timm") from None
        if not timm.is_model(name):  # "hf-hub:..." and "local-dir:..." are none either
            known = nearest(name, timm.list_models())
            raise InputError(f"model.name: timm has no model '{name}'.{known}", "timm.list_models() lists them.")
        if refused := sorted(options.keys() & REFUSED):
            raise InputError(
                f"model.options: '{refused[0]}' is not taken by timm networks here.",
                "'pretrained' and the options of the model's architecture are.",
            )
        try:
            self.network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
        except (RuntimeError, TypeError, ValueError, KeyError, OSError, AssertionError, ArithmeticError) as error:
            raise InputError(f"timm/{name}: cannot be made ({error}).", "Mend model.options.") from None
        self.num_features: int = self.network.num_features

    @property
    def head(self) -> nn.Module:
        return self.network.get_classifier()  # type: ignore[no-any-return]

    def drop_classifier(self) -> None:
        """Keep only the backbone."""
        self.network.reset_classifier(0)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, C, H', W'); of a transformer (B, C, 1, tokens)."""
        features: Tensor = self.network.forward_features(x)
        if features.ndim == 3:  # (B, tokens, C); class and register tokens come first and are no positions
            first = getattr(self.network, "num_prefix_tokens", 0)
            return features[:, first:].mT[:, :, None, :]
        if features.shape[1] != self.num_features and features.shape[-1] == self.num_features:  # (B, H', W', C)
            return features.permute(0, 3, 1, 2)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.network(x)  # type: ignore[no-any-return]
