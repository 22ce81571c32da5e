"""Backbones of timm (https://github.com/huggingface/pytorch-image-models); an optional dependency."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookalike.errors import InputError, nearest
from lookalike.extras import missing
from lookalike.models.layers import global_average

# Options by which timm would read a pickle, or create another model than its name says.
REFUSED = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes"})
CANNOT_BE_MADE = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, OSError, AssertionError, ArithmeticError,
)  # fmt: skip

Pooling = Literal["mean", "own"]

_NO_OPERATOR = re.compile(r"operator torchvision::(\w+) does not exist")
_declared: list[torch.library.Library] = []  # operators exist as long as these objects


class TimmNetwork(nn.Module):
    """A timm model with the interface that `create_model` describes.

    Args:
        name: as timm knows it, such as "convnext_atto" or "resnet18.a1_in1k".
        num_classes: outputs of the classifier; 0: none.
        pretrained: start from weights of timm, which are downloaded, instead of random ones.
        options: keyword arguments of `timm.create_model`.

    Attributes:
        pooling: how features become a vector: "own", by the model (average, class token, attention, ...), or "mean",
            over the positions of the feature map, as in model folders made before there was a choice.

    Raises:
        InputError: timm is not installed, it has no such model, a value it refuses, or weights it cannot get.
    """

    def __init__(self, name: str, num_classes: int, /, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        timm = import_timm(name)
        if not timm.is_model(name):  # "hf-hub:..." and "local-dir:..." are none either
            raise unknown_model(name)
        if refused := sorted(options.keys() & REFUSED):
            raise InputError(
                f"model.options: '{refused[0]}' is not taken by timm networks here.",
                "'pretrained' and the options of the model's architecture are.",
            )
        try:
            self.network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
        except CANNOT_BE_MADE as error:
            raise InputError(f"timm/{name}: cannot be made ({error}).", "Mend model.options.") from None
        self.num_classes = num_classes
        self.num_features: int = self.network.num_features
        self.pooling: Pooling = "own"

    @property
    def head(self) -> nn.Module:
        return self.network.get_classifier()  # type: ignore[no-any-return]

    def drop_classifier(self) -> None:
        """Keep only the backbone."""
        self.network.reset_classifier(0)
        self.num_classes = 0

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the features of timm: (B, C, H', W'), (B, H', W', C) or (B, tokens, C)."""
        return self.network.forward_features(x)  # type: ignore[no-any-return]

    def feature_map(self, features: Tensor) -> Tensor:
        """The features as a map (B, C, H', W'); of a transformer (B, C, 1, tokens), only of image positions."""
        if features.ndim == 3:  # class and register tokens come first and are no positions
            first = getattr(self.network, "num_prefix_tokens", 0)
            return features[:, first:].mT[:, :, None, :]
        if features.shape[1] != self.num_features and features.shape[-1] == self.num_features:
            return features.permute(0, 3, 1, 2)
        return features

    def pooled(self, features: Tensor) -> Tensor:
        """The features as vectors (B, D), not normalised; see `pooling`."""
        if self.pooling == "mean":
            return global_average(self.feature_map(features))
        return self.network.forward_head(features, pre_logits=True).flatten(1)  # type: ignore[no-any-return]

    def forward_head(self, features: Tensor) -> Tensor:
        """The features as logits (B, num_classes)."""
        return self.network.forward_head(features)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.network(x)  # type: ignore[no-any-return]


def import_timm(name: str) -> Any:
    """The module timm.

    timm imports torchvision, of which it uses only what is written in Python. The compiled operators of PyPI's
    torchvision are linked against CUDA: beside a CPU build of PyTorch they cannot be loaded, and then the import of
    torchvision fails where it describes them. They are declared here, without an implementation.

    Args:
        name: of the model that is wanted, for messages.

    Raises:
        InputError: timm is not installed, or it and PyTorch do not go together.
    """
    try:
        for _ in range(8):  # operators; torchvision 0.28 describes two
            try:
                import torchvision  # noqa: F401
            except RuntimeError as error:
                if not (operator := _NO_OPERATOR.search(str(error))):
                    raise
                _declared.append(torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
                _declared[-1].define(  # type: ignore[no-untyped-call]
                    f"{operator[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            else:
                break
        import timm
    except ImportError as error:
        raise missing(f"timm/{name}: timm cannot be imported ({error}).", "timm") from None
    except (RuntimeError, AttributeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"timm/{name}: timm or torchvision does not work with PyTorch {torch.__version__} ({reason}).",
            "Install versions that belong together: pip install --upgrade torch torchvision timm",
        ) from None
    return timm


def unknown_model(name: str) -> InputError:
    """The error for a name that timm does not know; it names the nearest one, with a tag if the name has one."""
    import timm

    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        there = f"It has {', '.join(each.partition('.')[2] for each in tagged)}." if tagged else "It has none."
        return InputError(f"timm/{name}: timm has no weights '{tag}' of {architecture}.{nearest(name, tagged)}", there)
    known = nearest(architecture, timm.list_models())
    return InputError(f"timm/{name}: timm has no model '{name}'.{known}", "timm.list_models() lists them.")
