"""Pairs of an image and a text tower, of open_clip (https://github.com/mlfoundations/open_clip); optional."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.models.serialization import MAX_CONTEXT, OPEN_CLIP
from lookalike.models.text import TextTokenizer
from lookalike.models.timm import CANNOT_BE_MADE, import_timm

# Parts of a configuration that need other packages, or that are other models than a pair of towers.
REFUSED = {
    "text_cfg.hf_model_name": "a text tower of transformers",
    "multimodal_cfg": "a captioning model",
    "text_cfg.tokenizer_mode": "a tokenizer mode",
}


class OpenClipNetwork(nn.Module):
    """An image and a text tower with one space of vectors; without a classifier.

    Args:
        options: the `model_cfg` of open_clip; keys of its sections are joined by dots, as in "vision_cfg.image_size".

    Attributes:
        tokenizer: for `encode_text`; None until the model folder or the import sets it.

    Raises:
        InputError: open_clip is not installed, or the options are not those of a pair.
    """

    num_classes = 0

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for key, what in REFUSED.items():
            if any(value is not None and f"{one}.".startswith(f"{key}.") for one, value in options.items()):
                raise InputError(f"{OPEN_CLIP}: '{key}' means {what}, which is not supported.", "Use another model.")
        open_clip = import_open_clip()
        try:
            sections = nested(options)
            custom = sections.pop("custom_text", False)
            vision, text = sections["vision_cfg"], sections["text_cfg"]
            if name := vision.get("timm_model_name"):
                if not import_timm(OPEN_CLIP).is_model(name):  # "hf-hub:..." and "local-dir:..." would be read
                    raise InputError(f"{OPEN_CLIP}: timm has no model '{name}'.", "Mend vision_cfg.timm_model_name.")
                vision["timm_model_pretrained"] = False
            if text.get("context_length", 0) > MAX_CONTEXT:
                raise ValueError(f"text_cfg.context_length is more than {MAX_CONTEXT}")
            self.pair = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**sections)
            self.num_features = int(sections["embed_dim"])
        except CANNOT_BE_MADE as error:
            raise InputError(f"{OPEN_CLIP}: cannot be made ({error}).", "Mend model.options.") from None
        self.tokenizer: TextTokenizer | None = None

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to vectors (B, D), not of unit length."""
        return self.pair.visual(x)  # type: ignore[no-any-return]

    def pooled(self, features: Tensor) -> Tensor:
        """`forward_features` gives vectors already."""
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to vectors (B, D) of unit length."""
        return F.normalize(self.forward_features(x).float(), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) int64 to vectors (B, D) float32 of unit length, in the space of the images'."""
        return F.normalize(self.pair.encode_text(tokens).float(), dim=1)


def import_open_clip() -> Any:
    """The module open_clip; see `import_timm` for what it needs of torchvision.

    Raises:
        InputError: it is not installed, or it and PyTorch do not go together.
    """
    if find_spec("open_clip") is None:
        raise missing(f"{OPEN_CLIP}: the package open-clip-torch is not installed.", "clip")
    import_timm(OPEN_CLIP)
    try:
        import open_clip
    except ImportError as error:
        raise missing(f"{OPEN_CLIP}: open_clip cannot be imported ({error}).", "clip") from None
    return open_clip


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with keys joined by dots, as sections.

    >>> nested({"embed_dim": 8, "vision_cfg.width": 16})
    {'embed_dim': 8, 'vision_cfg': {'width': 16}}
    """
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *sections, last = key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return tree


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The inverse of `nested`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value})
    return found
