"""What runs the network of a service: ONNX Runtime on a CPU, PyTorch on a GPU; one forward gives logits and vectors."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_file
from lookalike.hardware import cores
from lookalike.image import CropMode
from lookalike.models.onnx_runtime import VERSION, OnnxModel
from lookalike.models.serialization import ModelConfig, describe

if TYPE_CHECKING:
    from lookalike.models.pretrained import ImageModel

Kind = Literal["auto", "onnx", "torch"]
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and either in Windows's Linux


@dataclass(frozen=True)
class Outputs:
    """Of N pictures: logits (N, C) float32, None of a model without classes, and vectors (N, D) float32 of length 1."""

    logits: NDArray[np.float32] | None
    vectors: NDArray[np.float32]


class Runtime(Protocol):
    """A network, ready to run. One thread at a time.

    Args:
        name: for people.
        fingerprint: of the model; its vectors and no others go with it.
        size, crop_mode: how pictures are put before it.
        dim: numbers of a vector.
        class_names, class_ids: what it tells apart; empty of a model of embeddings.
        temperature: divides the logits before the softmax.
        unknown_threshold: the probability of the likeliest class below which the answer is "unknown"; None: never.
    """

    name: str
    fingerprint: str
    size: int
    crop_mode: CropMode
    dim: int
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    temperature: float
    unknown_threshold: float | None

    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        """What the network makes of pictures, (N, size, size, 3) uint8, RGB."""
        ...

    def close(self) -> None:
        """Let go of memory and threads."""
        ...


class _Known:
    """What every engine says of its model."""

    def __init__(self, config: ModelConfig, fingerprint: str, dim: int, how: str) -> None:
        self.name = f"{_called(config)} ({how})"
        self.fingerprint = fingerprint
        self.size = config.image_size
        self.crop_mode = config.crop_mode
        self.dim = dim
        self.class_names: tuple[str, ...] = () if config.head else config.class_names
        self.class_ids: tuple[str, ...] = () if config.head else config.class_ids
        self.temperature = config.temperature
        self.unknown_threshold = config.unknown_threshold

    def close(self) -> None:
        """Nothing to let go."""


class TorchRuntime(_Known):
    """PyTorch, where the model is: on a GPU, or on the CPU in float32.

    Args:
        model: on its device.
    """

    def __init__(self, model: ImageModel) -> None:
        from lookalike.models.export import Portable

        where = "PyTorch" if model.device.type == "cpu" else f"PyTorch, {model.device}"
        super().__init__(model.config, model.fingerprint, model.embedding_dim, where)
        self._network = Portable(model).to(model.device)
        self._device = model.device

    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        import torch

        with torch.inference_mode():
            found = [one.float().cpu().numpy() for one in self._network(torch.from_numpy(pictures).to(self._device))]
        return Outputs(found[0] if self.class_names else None, found[-1])


class OnnxRuntime(_Known):
    """ONNX Runtime on the CPU. The file is made from the model when it is first wanted, and kept in the cache; from
    then on PyTorch is not even loaded.

    Args:
        model: a folder, a Hub id, or a model of any kind that is loaded.
        threads: that one batch is computed with; None: one fewer than there are cores, which is left to the event loop
            and to decoding: under full load these would wait otherwise.
        cache: folder of the files; None: `onnx` in $LOOKALIKE_CACHE or the user's cache folder.

    Raises:
        InputError: no such model, onnxruntime is not installed, or the exporter where a file must be made; or the
            folder cannot be written.
    """

    def __init__(self, model: ImageModel | str | Path, threads: int | None = None, cache: Path | None = None) -> None:
        loaded = None if isinstance(model, str | Path) else model
        config, fingerprint = (loaded.config, loaded.fingerprint) if loaded else describe(str(model))
        path = (cache or _cache()) / f"{fingerprint[:32]}-{VERSION}.onnx"
        if not _is_kept(path):
            _keep(loaded or _load(model, "cpu"), path)
        session = OnnxModel(path, threads or max(1, cores() - 1))
        super().__init__(config, fingerprint, session.about["dim"], "ONNX Runtime")
        self._session: OnnxModel | None = session

    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        if self._session is None:
            raise RuntimeError("the engine is closed")
        found = self._session.run(pictures)
        return Outputs(found.get("logits"), found["embedding"])

    def close(self) -> None:
        """Let the session go."""
        self._session = None


def create_runtime(
    model: str | Path | ImageModel, kind: Kind = "auto", threads: int | None = None, cache: Path | None = None
) -> Runtime:
    """An engine for a model.

    Args:
        model: a folder, a Hub id, or a model that is loaded.
        kind: "auto": ONNX Runtime, unless there is a GPU.
        threads: of ONNX Runtime; see `OnnxRuntime`.
        cache: of its files.

    Raises:
        InputError: no such model, or what the engine needs is not installed.
    """
    if kind == "onnx" or (kind == "auto" and not _may_have_gpu()):
        return OnnxRuntime(model, threads, cache)
    loaded = _load(model, "auto")
    if kind == "torch" or loaded.device.type != "cpu":
        return TorchRuntime(loaded)
    return OnnxRuntime(loaded, threads, cache)


def _load(model: str | Path | ImageModel, device: str) -> ImageModel:
    if not isinstance(model, str | Path):
        return model
    from lookalike.models.pretrained import load

    return load(model, device)


def _may_have_gpu() -> bool:
    """Whether it is worth asking PyTorch, whose loading takes a second or two: not on Linux without a driver."""
    return sys.platform != "linux" or any(Path(name).exists() for name in DRIVERS)


def _called(config: ModelConfig) -> str:
    """`resnet18` as people write it, and what it was trained on."""
    return f"{config.name}, {config.dataset}" if config.dataset else config.name


def _cache() -> Path:
    return Path(os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike")).expanduser() / "onnx"


def _is_kept(path: Path) -> bool:
    """Whether a model's file is there. Beside it lies its SHA-256: one that is damaged is made again."""
    mark = path.with_suffix(".sha256")
    return path.is_file() and mark.is_file() and mark.read_text().strip() == _digest(path)


def _keep(model: ImageModel, path: Path) -> None:
    from lookalike.models.export import export

    mark = path.with_suffix(".sha256")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        export(model, path)
        with atomic_file(mark, shared=True) as beside:
            beside.write_text(_digest(path))
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({error.strerror}).", "Set LOOKALIKE_CACHE to a folder that can."
        ) from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
