"""Runtimes: a trained model, ready to turn images into logits and unit vectors, in PyTorch or in ONNX Runtime.

Both compute the function of `lookalike.models.inference.logits_and_vectors`; their vectors agree with those of
`ImageModel.embed` to a cosine of 0.9999 or more. Importing this module does not load PyTorch, and `OnnxRuntime` loads
it only to write a file.
"""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_file, cannot_write
from lookalike.hardware import cores
from lookalike.models.locate import describe
from lookalike.models.onnx_runtime import FILE_VERSION, OnnxModel
from lookalike.models.onnx_text import OnnxTextTower
from lookalike.models.text import NoTextError

if TYPE_CHECKING:
    from lookalike.models.inference import Compute
    from lookalike.models.pretrained import ImageModel
    from lookalike.models.serialization import ModelConfig

RuntimeName = Literal["auto", "onnx", "torch"]
GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, and of either under WSL


@dataclass(frozen=True)
class Outputs:
    """Outputs for N images: logits (N, C) float32, None for a model without classes; unit vectors (N, D) float32."""

    logits: NDArray[np.float32] | None
    vectors: NDArray[np.float32]


class Runtime(ABC):
    """A trained model, ready to run. Use it from one thread at a time.

    Attributes:
        name: of the model and the library that runs it, for people.
        fingerprint: of the model; vectors can be compared only with those of the same fingerprint.
        size, crop_mode: side of the square input images in pixels, and how an image becomes square.
        dim: numbers in a vector.
        has_text: whether the model has a text tower, so that `embed_text` can be used.
        class_names, class_ids, temperature, unknown_threshold: see `ClassInfo`; no names and ids without a classifier.
    """

    def __init__(self, config: ModelConfig, fingerprint: str, dim: int, library: str) -> None:
        model = f"{config.name}, {config.dataset}" if config.dataset else config.name
        self.name = f"{model} ({library})"
        self.fingerprint = fingerprint
        self.size = config.image_size
        self.crop_mode = config.crop_mode
        self.dim = dim
        self.class_names: tuple[str, ...] = config.class_names if config.has_logits else ()
        self.class_ids: tuple[str, ...] = config.class_ids if config.has_logits else ()
        self.temperature = config.temperature
        self.unknown_threshold = config.unknown_threshold
        self.has_text = config.text is not None

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Logits and vectors of images (N, size, size, 3) uint8, RGB."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of images (N, size, size, 3) uint8, RGB."""
        return self.run(images).vectors

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of texts, in the space of the images'.

        Raises:
            NoTextError: the model has no text tower.
            InputError: a text that is empty or far too long.
        """
        raise NoTextError(self.name)

    def close(self) -> None:  # noqa: B027 - most runtimes hold nothing
        """Free memory and threads."""


class TorchRuntime(Runtime):
    """A copy of a model, prepared for fast inference in PyTorch on the model's device. The model is not changed.

    Args:
        model: a classifier or an embedding model.
        compute: "float32"; "bfloat16"; or "auto": bfloat16 if the model is on a CPU that has it in hardware. See
            `lookalike.models.inference`.

    Raises:
        InputError: bfloat16 for a model that is not on a CPU.
    """

    def __init__(self, model: ImageModel, compute: Compute = "auto") -> None:
        from lookalike.models.inference import PreparedNetwork

        self.model = model
        self.device = model.device
        library = "PyTorch" if self.device.type == "cpu" else f"PyTorch, {self.device}"
        super().__init__(model.config, model.fingerprint, model.embedding_dim, library)
        self._network = PreparedNetwork(model.network, model.config, compute)
        self.bfloat16 = self._network.bfloat16

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        self._check(images)
        return Outputs(*self._network.logits_and_vectors(images))

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.embed`. The classifier is not run."""
        self._check(images)
        return self._network.vectors(images) if len(images) else np.empty((0, self.dim), np.float32)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Runtime.embed_text`. The text tower is run as it is."""
        return self.model.embed_text(texts)

    def _check(self, images: NDArray[np.uint8]) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise InputError(
                f"an array of {images.dtype} {images.shape} is not a batch of images for this model.",
                f"Give uint8 of shape (N, {self.size}, {self.size}, 3).",
            )


class OnnxRuntime(Runtime):
    """A model in ONNX Runtime. Its file is exported when it is first needed, and cached by the model's fingerprint.

    Args:
        model: a model folder, a Hub id, "default", or a loaded model.
        threads: that compute one batch; None: one fewer than there are cores, since the event loop and the decoder of
            a service need one.
        cache: folder of the files; None: `onnx` in $LOOKALIKE_CACHE or in the user's cache folder.

    Raises:
        InputError: no such model, onnxruntime (or, to write the file, the exporter) is not installed, or the cache
            cannot be written.
    """

    def __init__(self, model: ImageModel | str | Path, threads: int | None = None, cache: Path | None = None) -> None:
        loaded = None if isinstance(model, str | Path) else model
        config, fingerprint = (loaded.config, loaded.fingerprint) if loaded else describe(str(model))
        path = (cache or _default_cache()) / f"{fingerprint[:32]}-{FILE_VERSION}.onnx"
        texts = None if config.text is None else path.with_name(f"{path.stem}-text.onnx")
        if not _is_cached(path) or (texts is not None and not _is_cached(texts)):
            _write_cached(loaded or _load(model, "cpu"), path, texts)
        threads = threads or max(1, cores() - 1)
        session = OnnxModel(path, threads)
        super().__init__(config, fingerprint, session.about["dim"], "ONNX Runtime")
        self._session: OnnxModel | None = session
        self._text_tower = None if texts is None else OnnxTextTower(texts, threads)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Runtime.run`."""
        if self._session is None:
            raise RuntimeError("the runtime is closed")
        outputs = self._session.run(images)
        return Outputs(outputs.get("logits"), outputs["embedding"])

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Runtime.embed_text`."""
        if self._text_tower is None:
            return super().embed_text(texts)
        return self._text_tower.embed(texts)

    def close(self) -> None:
        """Free the sessions."""
        self._session = self._text_tower = None


def create_runtime(
    model: str | Path | ImageModel, name: RuntimeName = "auto", threads: int | None = None, cache: Path | None = None
) -> Runtime:
    """Create the runtime that serves a model.

    Args:
        model: a model folder, a Hub id, "default", or a loaded model.
        name: "onnx", "torch", or "auto": ONNX Runtime, unless there is a GPU.
        threads: of ONNX Runtime; see `OnnxRuntime`.
        cache: folder for its files; see `OnnxRuntime`.

    Raises:
        InputError: no such model, or a package that the runtime needs is not installed.
    """
    if name == "onnx" or (name == "auto" and not _may_have_gpu()):
        return OnnxRuntime(model, threads, cache)
    loaded = _load(model, "auto")
    if name == "torch" or loaded.device.type != "cpu":
        return TorchRuntime(loaded, "float32")
    return OnnxRuntime(loaded, threads, cache)


def _may_have_gpu() -> bool:
    """Whether asking PyTorch for a GPU is worth the second or two that loading it takes."""
    return sys.platform != "linux" or any(Path(name).exists() for name in GPU_DEVICE_FILES)


def _load(model: str | Path | ImageModel, device: str) -> ImageModel:
    if not isinstance(model, str | Path):
        return model
    from lookalike.models.pretrained import load

    return load(model, device)


def _default_cache() -> Path:
    return Path(os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike")).expanduser() / "onnx"


def _is_cached(path: Path) -> bool:
    """Whether the file is there and has the SHA-256 that lies beside it; a damaged file is exported again."""
    checksum = path.with_suffix(".sha256")
    return path.is_file() and checksum.is_file() and checksum.read_text().strip() == _sha256(path)


def _write_cached(model: ImageModel, path: Path, texts: Path | None) -> None:
    """Export a model to `path`, and its text tower to `texts`."""
    from lookalike.models.export import export

    remedy = "Set LOOKALIKE_CACHE to a writable folder."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error, remedy) from None
    export(model, path)
    written = [path]
    if texts is not None:
        from lookalike.models.export_text import export_text

        export_text(model, texts)
        written.append(texts)
    for file in written:
        with atomic_file(file.with_suffix(".sha256"), shared=True, remedy=remedy) as partial:
            partial.write_text(_sha256(file))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
