"""A slow, obvious runtime for tests: the model's own `logits` and `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lookalike.models.pretrained import ImageModel, load
from lookalike.models.runtime import Outputs


class PlainRuntime:
    """See `lookalike.models.runtime.Runtime`."""

    def __init__(self, model: ImageModel | str | Path) -> None:
        self.model = model if isinstance(model, ImageModel) else load(model)
        config = self.model.config
        self.name = f"{config.name} (plain)"
        self.fingerprint, self.size, self.crop_mode = self.model.fingerprint, config.image_size, config.crop_mode
        self.dim = self.model.embedding_dim
        self.class_names = () if config.head else config.class_names
        self.class_ids = () if config.head else config.class_ids
        self.temperature = config.temperature
        self.unknown_threshold: float | None = getattr(config, "unknown_threshold", None)
        self.has_text = config.text is not None
        self.batches: list[int] = []
        self.closed = False

    @torch.inference_mode()
    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        self.batches.append(len(pictures))
        logits = self.model.logits(pictures) if self.class_names else None
        return Outputs(logits, self.model.embed(pictures))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.model.embed_text(texts)

    def close(self) -> None:
        self.closed = True
