"""A network with everything needed to use it, and the model folder that it is kept in.

A model folder, which is also what a Hub repository holds:

    model.safetensors   weights and batch-norm statistics; its header repeats the network and the preprocessing
    config.json         `ModelConfig`, and the SHA-256 of model.safetensors
    README.md           the model card
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike import hardware as devices
from lookalike.errors import InputError
from lookalike.image import ImageLike, decode
from lookalike.models import serialization
from lookalike.models.layers import global_average
from lookalike.models.registry import build_for
from lookalike.models.serialization import ModelConfig, Precision


@dataclass(frozen=True)
class Prediction:
    """One answer: the class's word, its id in the data set, its index, and its probability in 0..1."""

    label: str
    class_id: str
    index: int
    probability: float


class Predictions(list[Prediction]):
    """The likeliest classes of one image, the likeliest first.

    Args:
        predictions: these.
        unknown: whether the likeliest is too unlikely to be believed: the image is better called unknown.
    """

    def __init__(self, predictions: Iterable[Prediction] = (), *, unknown: bool = False) -> None:
        super().__init__(predictions)
        self.unknown = unknown

    def __repr__(self) -> str:
        return f"Predictions({super().__repr__()}, unknown={self.unknown})"


class ImageModel(nn.Module, ModelHubMixin):
    """A network that takes pictures and answers with labels or vectors.

    Args:
        network: what `build(config.name, config.num_classes, config.options, config.head)` makes, trained.
        config: what it is; to change a field, `Pretrained(model.network, model.config.model_copy(update={...}))`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self._loaded_fingerprint: str | None = None
        self._where = config.name  # for messages
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.to(next(network.parameters()).device)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `model.safetensors`: as loaded, else as `save_pretrained` would write it now.

        It changes with any weight, the architecture, the image size and the normalisation: with what vectors depend on.
        """
        return self._loaded_fingerprint or serialization.fingerprint(self._serialised(self.config))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    def predict(
        self, images: Sequence[ImageLike] | NDArray[np.uint8], *, top: int = 5, flip: bool = False, batch_size: int = 64
    ) -> list[Predictions]:
        """The likeliest classes of each image, the likeliest first.

        Args:
            images: Pillow images, paths, bytes of image files or (H, W, 3) uint8 arrays, of any size.
            top: answers per image; no more than there are classes.
            flip: average the logits with those of the mirrored image.
            batch_size: images at a time.

        Returns:
            For each image, `top` predictions, with `unknown` beside them. Probabilities are over all classes.

        Raises:
            InputError: an image that cannot be read, numbers below one, or a model of embeddings.
        """
        if self.config.head:
            raise InputError(
                "this model has an embedding in the place of a classifier.", "Use embed, or search a gallery with it."
            )
        if top < 1:
            raise InputError(f"top must be at least 1, not {top}.", "Give the number of answers per image.")
        logits = torch.from_numpy(self.logits(images, flip=flip, batch_size=batch_size))
        probabilities, indices = (logits / self.config.temperature).softmax(1).topk(min(top, self.config.num_classes))
        names, ids = self.config.class_names, self.config.class_ids
        return [
            Predictions(
                (Prediction(names[i], ids[i], i, p) for i, p in zip(row, values, strict=True)),
                unknown=self.config.is_unknown(values[0]),
            )
            for row, values in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def logits(
        self, images: Sequence[ImageLike] | NDArray[np.uint8], *, flip: bool = False, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """The network's outputs, before temperature and softmax (of a model of embeddings, these). The network is left
        in eval mode.

        Args:
            images: as for `predict`; images that have the model's size already, such as those of a pack
                (N, size, size, 3), go in as they are.
            flip: average with the logits of the mirrored image.
            batch_size: images at a time.

        Returns:
            (N, C) float32.

        Raises:
            InputError: an image that cannot be read.
        """
        self.eval()
        columns = self.embedding_dim if self.config.head else self.config.num_classes
        parts = [np.empty((0, columns), np.float32)]
        for x in self._batches(images, batch_size):
            logits = self.network(x)
            if flip:
                logits = (logits + self.network(x.flip(3))) / 2
            parts.append(self._finite(logits))
        return np.concatenate(parts)

    @torch.inference_mode()
    def embed(
        self, images: Sequence[ImageLike] | NDArray[np.uint8], *, flip: bool = False, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Vectors whose dot products say how alike images look: a model's embedding; of one that has a classifier, the
        mean of the last feature map over its positions.

        Args:
            images: as for `predict`.
            flip: the direction between the image's vector and the mirrored one's.
            batch_size: images at a time.

        Returns:
            (N, D) float32, rows of length 1; D is the embedding's, else the channels of the last feature map.

        Raises:
            InputError: an image that cannot be read.
        """
        self.eval()
        parts = [self._finite(self._embed_batch(x, flip)) for x in self._batches(images, batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self.embedding_dim), np.float32)

    @property
    def embedding_dim(self) -> int:
        """D of `embed`."""
        size = self.config.image_size
        with torch.inference_mode():
            self.eval()
            return int(self._features(torch.zeros(1, 3, size, size, device=self.device)).shape[1])

    def _finite(self, answers: Tensor) -> NDArray[np.float32]:
        """Answers of the network in memory.

        Raises:
            InputError: not all of them are finite.
        """
        if not answers.isfinite().all():
            raise InputError(
                f"{self._where}: this network answers with numbers that are not finite: its weights are damaged.",
                serialization.WHOLE,
            )
        return answers.float().cpu().numpy()

    def _embed_batch(self, x: Tensor, flip: bool) -> Tensor:  # (B, 3, H, W) -> (B, D)
        vectors = F.normalize(self._features(x), dim=1)
        if flip:
            vectors = F.normalize(vectors + F.normalize(self._features(x.flip(3)), dim=1), dim=1)
        return vectors

    def _features(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, D)
        if self.config.head:
            return self.network(x)  # type: ignore[no-any-return]
        return global_average(self.network.forward_features(x))  # type: ignore[operator]

    def _batches(self, images: Sequence[ImageLike] | NDArray[np.uint8], batch_size: int) -> Iterator[Tensor]:
        """Normalised batches (B, 3, size, size) float32, channels_last, on the model's device."""
        if isinstance(images, str | bytes | Path) or not hasattr(images, "__len__"):
            raise InputError(f"one {type(images).__name__} instead of a list of images.", "Write [image].")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.", "64 is usual.")
        size, mode = self.config.image_size, self.config.crop_mode
        pictures = (decode(image, size, name=f"image {i}", crop_mode=mode) for i, image in enumerate(images))
        while batch := list(islice(pictures, batch_size)):
            x = torch.from_numpy(np.stack(batch)).to(self.device).permute(0, 3, 1, 2)  # (B, 3, H, W), channels_last
            yield (x.float() / 255 - self.mean) / self.std

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        precision: Precision | None = None,
        config: object = None,
        model_card_kwargs: object = None,
    ) -> None:
        """Write the model folder. A model that is there already is replaced once the new one is whole on disk.

        Args:
            save_directory: the folder; made when missing. Other files in it are left alone.
            precision: "float32" or "float16" (half the size); None keeps `config.precision`.
            config: not used; `push_to_hub` passes it.
            model_card_kwargs: not used; `push_to_hub` passes it.

        Raises:
            InputError: the folder cannot be written, or a weight is not finite (in float16: beyond 65504).
        """
        saved = self.config.model_copy(update={"precision": precision or self.config.precision})
        data = self._serialised(saved)
        mark = serialization.fingerprint(data)
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        serialization.write(
            Path(save_directory),
            weights=data,
            config=json.dumps({**saved.model_dump(mode="json"), "fingerprint": mark}, indent=2, ensure_ascii=False),
            card=serialization.card(saved, parameters, self.embedding_dim, mark),
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str = "cpu",
        revision: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> ImageModel:
        """Load a model folder, from disk or from the Hugging Face Hub, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, a Hub id such as "owner/name", or "default" (in the package).
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            revision: of a Hub model: a branch, tag or commit.
            force_download: of a Hub model: download again what is in the cache.
            local_files_only: of a Hub model: only what is in the cache.
            token: of a Hub model: to log in with.
            cache_dir: of a Hub model: where downloads are kept.

        Raises:
            InputError: no model there, a damaged or exchanged file, a pickle, an unknown format or network, tensors
                that do not fit the network, or no such device.
        """
        where = devices.choose_device(device)
        config_path, weights_path = serialization.find(
            pretrained_model_name_or_path,
            revision=revision,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            cache_dir=cache_dir,
        )
        config, mark = serialization.read_config(ModelConfig, config_path)
        tensors = serialization.read(weights_path, mark, config.of_vectors())
        network = _build(config, tensors, config_path)
        serialization.fill(network, tensors, weights_path)
        model = cls(network.to(where, memory_format=torch.channels_last), config)  # type: ignore[call-overload]
        model._loaded_fingerprint, model._where = mark, str(weights_path)
        return model.eval()

    def _serialised(self, config: ModelConfig) -> bytes:
        dtype = torch.float16 if config.precision == "float16" else torch.float32
        return serialization.serialise(self.network.state_dict(), dtype, config.of_vectors())


def load(name: str | Path = serialization.DEFAULT, device: str = "cpu") -> ImageModel:
    """Load a model: the one in the package, a model folder, or the id of one on the Hugging Face Hub.

    See `Pretrained.from_pretrained`.
    """
    return ImageModel.from_pretrained(name, device=device)


def _build(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    options: dict[str, Any] = dict(config.options)
    options.pop("pretrained", None)  # a timm model's own weights: ours replace them
    try:
        return build_for(tensors, config.name, config.num_classes, options, config.head)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.remedy) from None
