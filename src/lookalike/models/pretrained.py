"""A trained model in memory, and the model folder that it is saved in.

A model folder, which is also what a Hub repository holds:

    model.safetensors   weights and batch-norm statistics; its header repeats the network and the preprocessing
    config.json         `ModelConfig`, and the SHA-256 of model.safetensors
    README.md           the model card
    tokenizer.json      of a model with a text tower
"""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, overload

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lookalike import hardware as devices
from lookalike.errors import InputError, counted
from lookalike.image import ImageLike, decode
from lookalike.models import locate, serialization
from lookalike.models.inference import View, run_batches, vector_view
from lookalike.models.open_clip import OpenClipNetwork
from lookalike.models.prediction import LabelInfo, Prediction, predictions_of
from lookalike.models.registry import build_for
from lookalike.models.serialization import ModelConfig, Precision
from lookalike.models.text import PROMPT, load_tokenizer, prompts_of, settings_of
from lookalike.models.timm import TimmNetwork

Images: TypeAlias = "Iterable[ImageLike] | NDArray[np.uint8]"  # an array: (N, H, W, 3)


class ImageModel(nn.Module, ModelHubMixin):
    """A trained network that labels images and turns them into vectors.

    Args:
        network: made by `create_model(config.name, config.num_classes, config.options, config.head)`, and trained.
        config: its description. To change a field: `ImageModel(model.network, model.config.model_copy(update={...}))`.
    """

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self._known_fingerprint: tuple[tuple[str, str, int], str] | None = None  # of which state
        self._location = config.name  # for messages

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `model.safetensors`, as `save_pretrained` would write it now.

        It changes with everything that vectors depend on: any weight, the architecture, the image size, the crop and
        the normalisation. Each use computes a checksum of the weights (30 ms for the 11 million of a ResNet-18), so
        that it is right after they were edited in memory; SHA-256 is computed only if they were.
        """
        state = self._state()
        if self._known_fingerprint is None or self._known_fingerprint[0] != state:
            self._known_fingerprint = state, serialization.fingerprint(self._serialised())
        return self._known_fingerprint[1]

    def _state(self) -> tuple[str, str, int]:
        """What the fingerprint depends on: the header, the stored precision, and a CRC-32 of the weights."""
        checksum = 0
        for name, tensor in self.network.state_dict().items():
            checksum = zlib.crc32(name.encode(), checksum)
            checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
        return self.config.of_vectors(), self.config.precision, checksum

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: Image.Image | str | Path | bytes, k: int = 5, *, flip: bool = False, batch_size: int = 64
    ) -> Prediction: ...

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: NDArray[np.uint8], k: int = 5, *, flip: bool = False, batch_size: int = 64
    ) -> Prediction | list[Prediction]: ...

    @overload
    def predict(
        self, images: Iterable[ImageLike], k: int = 5, *, flip: bool = False, batch_size: int = 64
    ) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Images, k: int = 5, *, flip: bool = False, batch_size: int = 64
    ) -> Prediction | list[Prediction]:
        """The k most probable classes of one image, or of each of several.

        Args:
            images: one image: a path, the bytes of an image file, a Pillow image, or an (H, W, 3) uint8 array, of any
                size; or several: any iterable of these, or an (N, H, W, 3) array.
            k: classes for each image; all of them if the model has fewer.
            flip: average the logits with those of the mirrored image.
            batch_size: images that are computed at a time.

        Returns:
            A `Prediction` for one image, a list of N for several. Probabilities are over all classes.

        Raises:
            InputError: an image that cannot be read, numbers below 1, or a model without a classifier.
        """
        self.check_has_classes()
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", "Give the number of classes for each image.")
        if is_one_image(images):
            pixels = self._prepared(images)[None]
            (prediction,) = predictions_of(self.logits(pixels, flip=flip), self.config, k)
            return Prediction(prediction.classes, prediction.unknown, pixels[0])
        assert not isinstance(images, str | bytes | Path | Image.Image)
        return predictions_of(self.logits(images, flip=flip, batch_size=batch_size), self.config, k)

    def predict_labels(
        self,
        images: Images,
        labels: Sequence[str],
        k: int = 5,
        *,
        prompt: str = PROMPT,
        flip: bool = False,
        batch_size: int = 64,
    ) -> list[Prediction]:
        """The k most probable of the given labels for each image, without training (zero-shot classification).

        The label of an image is the one whose prompt has the highest cosine with the image. Probabilities are the
        softmax of the cosines divided by the temperature that the pair was trained with; they are among these labels
        only, so that an image that shows none of them gets one, too.

        Args:
            images: several, as for `predict`.
            labels: such as ["cat", "a red car"].
            k: labels for each image; all of them if there are fewer.
            prompt: the text for a label, with {} in its place; see `prompts_of`.
            flip: use the direction between the vectors of the image and of the mirrored image.
            batch_size: images that are computed at a time.

        Raises:
            NoTextError: the model has no text tower.
            InputError: an image that cannot be read, numbers below 1, or labels or a prompt that `prompts_of` refuses.
        """
        settings_of(self.config, self._location)
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", "Give the number of labels for each image.")
        texts = self.embed_text(prompts_of(labels, prompt))
        cosines = self.embed(images, flip=flip, batch_size=batch_size) @ texts.T
        return predictions_of(cosines, LabelInfo(tuple(labels), tuple(labels), self.config.temperature), k)

    def check_has_classes(self) -> None:
        """Check that the model can predict.

        Raises:
            InputError: it has no classifier.
        """
        if not self.config.has_logits:
            what = "an embedding head instead of a classifier" if self.config.head else "no classes, only vectors"
            labels = ", or give it labels: predict --labels" if self.config.text else ""
            raise InputError(f"{self.config.name}: has {what}.", f"Use embed, or search a gallery with it{labels}.")

    def logits(self, images: Images, *, flip: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """The outputs of the network for several images, before temperature and softmax.

        Args:
            images: as for `predict`. Images of the model's size, such as those of a pack (N, size, size, 3), are used
                as they are.
            flip: average with the logits of the mirrored image.
            batch_size: images that are computed at a time.

        Returns:
            (N, C) float32; the embeddings (N, D) of a model without a classifier.

        Raises:
            InputError: an image that cannot be read.
        """
        return self._run(images, "outputs", flip, batch_size)

    def embed(self, images: ImageLike | Images, *, flip: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors whose dot products (cosines) say how similar images look.

        They are the outputs of an embedding head or, of a classifier, the mean of the last feature map over its
        positions; a network of timm may pool its features otherwise.

        Args:
            images: one image or several, as for `predict`.
            flip: use the direction between the vectors of the image and of the mirrored image.
            batch_size: images that are computed at a time.

        Returns:
            (N, D) float32, rows of length 1; (D,) for one image.

        Raises:
            InputError: an image that cannot be read.
        """
        if is_one_image(images):
            vector: NDArray[np.float32] = self.embed([images], flip=flip)[0]
            return vector
        assert not isinstance(images, str | bytes | Path | Image.Image)
        vectors = self._run(images, vector_view(self.network), flip, batch_size)
        if flip:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    @torch.inference_mode()
    def embed_text(self, texts: str | Iterable[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors of texts in the space of `embed`: their cosine with the vector of an image says how well they fit.

        Args:
            texts: one text, such as "a dog on a beach", or several. What is beyond the context length of the text tower
                (77 tokens for CLIP) is cut off.
            batch_size: texts that are computed at a time.

        Returns:
            (N, D) float32, rows of length 1; (D,) for one text.

        Raises:
            NoTextError: the model has no text tower.
            InputError: a text that is empty or far too long.
        """
        if isinstance(texts, str):
            vector: NDArray[np.float32] = self.embed_text([texts])[0]
            return vector
        settings_of(self.config, self._location)
        network = self.network
        assert isinstance(network, OpenClipNetwork)
        assert network.tokenizer is not None
        tokens = torch.from_numpy(network.tokenizer(list(texts))).to(self.device)
        starts = range(0, len(tokens), batch_size)
        parts = [network.encode_text(tokens[start : start + batch_size]).cpu().numpy() for start in starts]
        return np.concatenate(parts) if parts else np.empty((0, self.embedding_dim), np.float32)

    @property
    def embedding_dim(self) -> int:
        """D of `embed`."""
        size = self.config.image_size
        blank = np.zeros((1, size, size, 3), np.uint8)
        config = self.config
        (vectors,) = run_batches(self.network, [blank], vector_view(self.network), mean=config.mean, std=config.std)
        return int(vectors.shape[1])

    def _run(self, images: Images, view: View, flip: bool, batch_size: int) -> NDArray[np.float32]:
        """One view of the network's outputs for images, (N, C) or (N, D).

        Raises:
            InputError: an image that cannot be read, or outputs that are not finite.
        """
        if is_one_image(images) or not isinstance(images, Iterable):
            raise InputError(f"one {type(images).__name__} instead of a list of images.", "Write [image].")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.", "64 is usual.")
        config = self.config
        parts = []
        batches = self._batches(images, batch_size)
        for part in run_batches(self.network, batches, view, mean=config.mean, std=config.std, flip=flip):
            if not np.isfinite(part).all():
                raise InputError(
                    f"{self._location}: the outputs of this network are not finite: its weights are damaged.",
                    serialization.WHOLE,
                )
            parts.append(part)
        columns = config.num_classes if view == "outputs" and config.has_logits else self.embedding_dim
        return np.concatenate(parts) if parts else np.empty((0, columns), np.float32)

    def _batches(self, images: Images, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        """Decoded images in batches, (B, size, size, 3)."""
        prepared = (self._prepared(image, f"image {i}") for i, image in enumerate(images))
        while batch := list(islice(prepared, batch_size)):
            yield np.stack(batch)

    def _prepared(self, image: ImageLike, name: str = "image") -> NDArray[np.uint8]:
        return decode(image, self.config.image_size, name=name, crop_mode=self.config.crop_mode)

    def _repr_html_(self) -> str:
        config = self.config
        facts = {
            "network": config.name,
            "trained on": f"{config.dataset or 'unnamed data'}, {counted(config.num_classes, 'class')}",
            "parameters": f"{sum(parameter.numel() for parameter in self.network.parameters()):,}",
            "image size": f"{config.image_size} × {config.image_size}, {config.crop_mode}",
            "vectors": f"{self.embedding_dim:,} numbers ({'embedding head' if config.head else 'pooled features'})",
            "device": str(self.device),
            "fingerprint": self.fingerprint,
        }
        rows = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
        return f"<table>{rows}</table>"

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        precision: Precision | None = None,
        config: object = None,
        model_card_kwargs: object = None,
    ) -> None:
        """Write the model folder. An existing model is replaced once the new one is complete on the disk.

        Args:
            save_directory: the folder; made if it is missing. Other files in it are left alone.
            precision: "float32" or "float16" (half the size); None keeps `config.precision`.
            config: not used; `push_to_hub` passes it.
            model_card_kwargs: not used; `push_to_hub` passes it.

        Raises:
            InputError: the folder cannot be written, or a weight is not finite (in float16: beyond 65504).
        """
        saved = self.config.model_copy(update={"precision": precision or self.config.precision})
        serialization.save(Path(save_directory), saved, self.network, self.embedding_dim)

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
        """Load a model folder from the disk or from the Hugging Face Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, "default" (in the package), the name of an imported model, "timm/"
                and the name of weights of timm, or a Hub id such as "owner/name".
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            revision: of a Hub model: a branch, tag or commit.
            force_download: of a Hub model: download it even if it is in the cache.
            local_files_only: of a Hub model: use only the cache.
            token: of a Hub model: to log in with.
            cache_dir: of a Hub model: folder of the downloads.

        Raises:
            InputError: no model there, a damaged or exchanged file, a pickle, an unknown format or network, tensors
                that do not fit the network, or no such device.
        """
        where = devices.choose_device(device)
        config_path, weights_path = locate.find(
            pretrained_model_name_or_path,
            revision=revision,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            cache_dir=cache_dir,
        )
        config, mark = serialization.read_config(ModelConfig, config_path)
        tokenizer = load_tokenizer(config, config_path.parent)
        tensors = serialization.read(weights_path, mark, config.of_vectors())
        network = _build(config, tensors, config_path)
        serialization.fill(network, tensors, weights_path)
        if isinstance(network, OpenClipNetwork):
            network.tokenizer = tokenizer
        model = cls(network.to(where, memory_format=torch.channels_last), config)  # type: ignore[call-overload]
        model._known_fingerprint, model._location = (model._state(), mark), str(weights_path)
        return model.eval()

    def _serialised(self) -> bytes:
        config = self.config
        return serialization.serialise(self.network.state_dict(), config.precision, config.of_vectors())


def load(name: str | Path = serialization.DEFAULT, device: str = "cpu") -> ImageModel:
    """Load a model: "default" (the one in the package), a model folder, or a name.

    A name is that of an imported model, "timm/" and the name of pretrained weights of timm, such as
    "timm/resnet50.a1_in1k", or the id of a model folder on the Hugging Face Hub.

    See `ImageModel.from_pretrained`.
    """
    return ImageModel.from_pretrained(name, device=device)


def is_one_image(images: object) -> TypeGuard[ImageLike]:
    """Whether this is one image, not several: a path, bytes, a Pillow image or an (H, W, 3) array."""
    if isinstance(images, np.ndarray):
        return images.ndim == 3
    return isinstance(images, str | bytes | Path | Image.Image)


def _build(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    options: dict[str, Any] = dict(config.options)
    options.pop("pretrained", None)  # a timm model's own weights: ours replace them
    try:
        network = build_for(
            tensors,
            config.name,
            config.num_classes,
            options,
            config.head,
            unit_features=config.unit_features,
        )
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.remedy) from None
    if isinstance(network, TimmNetwork):
        network.pooling = config.pooling
    return network
