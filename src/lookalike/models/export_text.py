"""Export a text tower as an ONNX file, beside the file of the images.

The input is `tokens`, (N, context_length) int64; the output is `text_embedding`, (N, D) float32 of unit length, in the
space of the images' embeddings. The description under the metadata key "lookalike" holds the tokenizer, as the content
of a tokenizer.json of the library `tokenizers`, and what is done to a text before and after it (`TextSettings`).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.files import atomic_file
from lookalike.models.export import write_onnx
from lookalike.models.onnx_text import OUTPUT, OnnxTextTower
from lookalike.models.open_clip import OpenClipNetwork
from lookalike.models.pretrained import ImageModel
from lookalike.models.text import settings_of

# Texts by which an exported text tower is compared with its model.
SUBJECTS = ("a dog", "two red cars", "an old tree", "a butterfly with eyes on its wings", "my sister's house", "1234")
PLACES = ("", " on a beach", " in the snow, at night", " — as a drawing")


class ExportedTextTower(nn.Module):
    """A text tower as one module: what is exported.

    Args:
        network: of a pair; it is copied to the CPU.
    """

    def __init__(self, network: OpenClipNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Tokens (N, L) int64 to vectors (N, D) of unit length."""
        return (self.network.encode_text(tokens),)


def text_path(path: Path) -> Path:
    """The file of the text tower that belongs to an exported file.

    >>> text_path(Path("clip.onnx")).name
    'clip-text.onnx'
    """
    return path.with_name(f"{path.stem}-text.onnx")


def export_text(model: ImageModel, path: Path) -> None:
    """Write the text tower of a model as an ONNX file, complete or not at all. An existing file is replaced.

    Raises:
        NoTextError: the model has none.
        InputError: a package is not installed, or the folder is not writable.
    """
    settings = settings_of(model.config, model.config.name)
    network = model.network
    assert isinstance(network, OpenClipNetwork)
    assert network.tokenizer is not None
    about = {
        "fingerprint": model.fingerprint,
        "name": model.config.name,
        "dim": model.embedding_dim,
        "class_names": [],
        "text": settings.model_dump(),
        "tokenizer": network.tokenizer.source,
    }
    example = torch.zeros(2, settings.context_length, dtype=torch.int64)
    with atomic_file(path, shared=True) as beside:
        write_onnx(ExportedTextTower(network), example, ("tokens", (OUTPUT,)), about, beside)


def text_agreement(model: ImageModel, exported: OnnxTextTower) -> float:
    """The smallest cosine of the embeddings that a model and its exported text tower give to one text."""
    texts = [f"{subject}{place}" for subject in SUBJECTS for place in PLACES]
    return float(np.min((model.embed_text(texts) * exported.embed(texts)).sum(1)))
