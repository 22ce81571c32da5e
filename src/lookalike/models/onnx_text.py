"""Run a text tower from an ONNX file that `export_text` wrote, in ONNX Runtime; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.models.onnx_runtime import OnnxModel
from lookalike.models.serialization import TextSettings
from lookalike.models.text import TextTokenizer
from lookalike.recipe import validate

BATCH_SIZE = 64
OUTPUT = "text_embedding"  # not "embedding", as PyTorch's exporter calls a value inside of text towers


class OnnxTextTower:
    """A text tower and its tokenizer.

    Args:
        path: of the file.
        threads: that compute one batch; None: one for each core.

    Raises:
        InputError: as `OnnxModel`, or the file is not of a text tower, or the packages of `clip` are not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._model = OnnxModel(path, threads)
        about = self._model.about
        if not isinstance(about.get("tokenizer"), str):
            raise InputError(f"{path}: not a text tower.", "Name the file that ends in -text.onnx.")
        settings = validate(TextSettings, about.get("text") or {}, str(path))
        self._tokenizer = TextTokenizer(about["tokenizer"], settings, str(path))
        self._dim = int(about["dim"])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (N, D) of unit length, as `ImageModel.embed_text`."""
        tokens = self._tokenizer(texts)
        starts = range(0, len(tokens), BATCH_SIZE)
        parts = [self._model.run(tokens[start : start + BATCH_SIZE])[OUTPUT] for start in starts]
        return np.concatenate(parts) if parts else np.empty((0, self._dim), np.float32)
