"""Pictures to vectors: the one way in which the search wing runs a network.

On a CPU, batch norm is folded into the convolutions, those on the smallest maps become matrix products (`folding.py`),
and where the processor multiplies bfloat16 in hardware, the network's body is computed in it; the stem, the pooling and
an embedding head stay in float32. On one core of an EPYC with AVX-512 BF16, at 64 pixels, ResNet-18 went from 622 to
1442 images/s by this, WeaveNet from 754 to 1258; without bfloat16 it is a tenth. Its cost: on 256 images of Tiny
ImageNet, the cosine with the vectors of `Pretrained.embed` was 0.99996 at least for ResNet-18, 0.99998 for WeaveNet,
0.99993 for the CUBS networks, and 0.99998 in the mean. With the stem in bfloat16, too, it fell to 0.99987. In float32
nothing changes that can be measured (0.9999998). A network of random weights loses more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.fusion import DenseConvolution, fold_batch_norm, make_small_ones_dense
from lookalike.models.layers import global_average
from lookalike.models.pretrained import ImageModel

Compute = Literal["auto", "float32", "bfloat16"]


class Embedder:
    """A model, ready to turn many pictures into vectors. The model itself is left as it is.

    Args:
        model: a classifier (the mean of its last feature map is used) or a model of embeddings, on its device.
        compute: "auto": bfloat16 where the CPU has it in hardware, else float32; or one of the two.

    Raises:
        InputError: bfloat16 for a network that is not on a CPU.
    """

    def __init__(self, model: ImageModel, compute: Compute = "auto") -> None:
        self.model = model
        self.fingerprint = model.fingerprint
        self.dim = model.embedding_dim
        self.size = model.config.image_size
        self.crop_mode = model.config.crop_mode
        self.device = model.device
        on_cpu = self.device.type == "cpu"
        if compute == "bfloat16" and not on_cpu:
            raise InputError(f"bfloat16 is for networks on a CPU, not on {self.device}.", "Use float32 there.")
        self.bfloat16 = compute == "bfloat16" or (compute == "auto" and on_cpu and has_bfloat16())
        network = copy.deepcopy(model.network).eval().requires_grad_(False)
        fold_batch_norm(network)
        if on_cpu:
            make_small_ones_dense(network, self.size)
        if self.bfloat16:
            _halve(network)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._head = self._network.head if model.config.head else None
        self._mean, self._std = 255 * model.mean, 255 * model.std

    @torch.inference_mode()
    def vectors(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The vectors of a batch of pictures, all at once.

        Args:
            pictures: (N, size, size, 3) uint8, RGB, as `lookalike.image.decode` gives them.

        Returns:
            (N, D) float32, rows of length 1.

        Raises:
            InputError: an array of another shape or type.
        """
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (self.size, self.size, 3):
            raise InputError(
                f"an array of {pictures.dtype} {pictures.shape} is no batch of pictures for this model.",
                f"Give uint8 of shape (N, {self.size}, {self.size}, 3).",
            )
        if not len(pictures):
            return np.empty((0, self.dim), np.float32)
        x = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.device).permute(0, 3, 1, 2)  # channels_last
        x = (x.float() - self._mean) / self._std  # (N, 3, size, size)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            features: Tensor = self._network.forward_features(x)
        features = features.float()
        found = global_average(features) if self._head is None else self._head(features)
        return F.normalize(found, dim=1).cpu().numpy()


@contextmanager
def lone_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which PyTorch and NumPy do everything alone. Where these divide one thing among several threads, those
    wait for one another after each layer, and all of them for whoever else needs the cores, such as those that decode.
    """
    before = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1, "blas"),
            ThreadPoolExecutor(count, "lookalike-embed", torch.set_num_threads, (1,)) as threads,
        ):
            yield threads
    finally:
        torch.set_num_threads(before)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _halve(network: nn.Module) -> None:
    """Convolutions in bfloat16, but for the stem (without one, the first), which is kept from autocast."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | DenseConvolution)]
    stem = getattr(getattr(network, "backbone", network), "stem", None)
    exact = stem if isinstance(stem, nn.Module) else convolutions[0]
    kept = set(exact.modules())
    for module in convolutions:
        if module not in kept:
            module.to(torch.bfloat16)
    exact.register_forward_pre_hook(_leave_autocast)
    exact.register_forward_hook(_enter_autocast)


def _leave_autocast(module: nn.Module, inputs: object) -> None:
    torch.set_autocast_enabled("cpu", False)


def _enter_autocast(module: nn.Module, inputs: object, output: object) -> None:
    torch.set_autocast_enabled("cpu", True)
