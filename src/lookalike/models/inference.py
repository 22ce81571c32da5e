"""Run a trained network on images: the only place that normalises them and turns features into unit vectors.

Evaluation, `ImageModel`, export and the runtimes of galleries and services (`runtime.py`) all use these functions.

`PreparedNetwork` is a copy of a network, prepared for fast inference. It folds batch norm into the convolutions and, on
a CPU, turns those on the smallest maps into matrix products (`fusion.py`). If the CPU multiplies bfloat16 in hardware,
it can run the convolutions in bfloat16; the stem, the pooling and the head stay in float32. On one core of an EPYC with
AVX-512 BF16, at 64 pixels, this took ResNet-18 from 622 to 1442 images/s and WeaveNet from 754 to 1258; without
bfloat16 the gain is a tenth. On 256 images of Tiny ImageNet the cosine with `ImageModel.embed` was at least 0.99996 for
ResNet-18, 0.99998 for WeaveNet and 0.99993 for the CUBS networks (with the stem in bfloat16, too: 0.99987), and
0.9999998 in float32. Networks with random weights lose more.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.fusion import DenseConvolution, fold_batch_norm, use_dense_for_small_maps
from lookalike.models.heads import EmbeddingNetwork
from lookalike.models.layers import global_average
from lookalike.models.open_clip import OpenClipNetwork
from lookalike.models.serialization import ModelConfig
from lookalike.models.timm import TimmNetwork

View = Literal["outputs", "features", "softmax", "classifier"]
Compute = Literal["auto", "float32", "bfloat16"]
UNMEASURED = TimmNetwork | OpenClipNetwork  # whose vectors nobody has compared in bfloat16
PROBE_IMAGES, PROBE_PASSES = 16, 3  # to find the faster precision


class Normalize(nn.Module):
    """uint8 RGB images (N, H, W, 3) to a network's input (N, 3, H, W) float32, channels_last: (x / 255 - mean) / std.

    Bit for bit what the training loader gives for an image that is not augmented.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = torch.tensor([1 / (255 * s) for s in std])
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2) * self.scale).add_(self.shift)


def unit_features(features: Tensor) -> Tensor:
    """The mean over the positions of a feature map (B, C, H, W), as vectors (B, C) of length 1."""
    return F.normalize(global_average(features).float(), dim=1)


def pooled_features(network: nn.Module, features: Tensor) -> Tensor:
    """Vectors (B, D) of length 1 from the result of `forward_features`: as a timm network pools, else the mean."""
    pooled = getattr(network, "pooled", None)
    return unit_features(features) if pooled is None else F.normalize(pooled(features).float(), dim=1)


def forward(network: nn.Module, x: Tensor, view: View) -> Tensor:
    """Run a network on normalised images (B, 3, H, W).

    Args:
        network: a classifier, or one with an embedding head.
        x: from `Normalize`.
        view: "outputs": logits (B, C), or embeddings (B, D) of length 1; "features": `pooled_features`; "softmax": the
            probabilities of a classifier, without temperature; "classifier": what its last linear layer takes, scaled
            to length 1.

    Returns:
        float32.
    """
    if view == "features":
        return pooled_features(network, network.forward_features(x))  # type: ignore[operator]
    if view == "classifier":
        return classifier_inputs(network, x)
    outputs: Tensor = network(x).float()
    return outputs.softmax(1) if view == "softmax" else outputs


def classifier_inputs(network: nn.Module, x: Tensor) -> Tensor:
    """What the last linear layer of a classifier takes, (B, D) float32, scaled to length 1."""
    seen: list[Tensor] = []
    with network.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0])):  # type: ignore[union-attr]
        network(x)
    return F.normalize(seen[0].float(), dim=-1)


def vector_view(network: nn.Module) -> View:
    """The view that gives a network's vectors: its embeddings, or the pooled features of a classifier."""
    return "outputs" if isinstance(network, EmbeddingNetwork) else "features"


def logits_and_vectors(network: nn.Module, x: Tensor, *, bfloat16: bool = False) -> tuple[Tensor | None, Tensor]:
    """Run a network once for both outputs: logits (B, C), None without a classifier, and unit vectors (B, D).

    Args:
        network: as for `forward`.
        x: from `Normalize`.
        bfloat16: compute the feature map in bfloat16 (a CPU's autocast); pooling and head are float32.
    """
    features = _feature_map(network, x, bfloat16)
    vectors = vectors_of(network, features)
    if isinstance(network, EmbeddingNetwork) or getattr(network, "num_classes", None) == 0:
        return None, vectors
    if hasattr(network, "forward_head"):
        return network.forward_head(features), vectors  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        return network(x), vectors  # its classifier needs more than the feature map


def vectors_of(network: nn.Module, features: Tensor) -> Tensor:
    """Unit vectors (B, D) from the result of `forward_features`: by the embedding head, else `pooled_features`."""
    return network.head(features) if isinstance(network, EmbeddingNetwork) else pooled_features(network, features)


def _feature_map(network: nn.Module, x: Tensor, bfloat16: bool) -> Tensor:
    """The result of `forward_features` in float32."""
    if not bfloat16:
        return network.forward_features(x).float()  # type: ignore[no-any-return, operator]
    with torch.autocast("cpu", torch.bfloat16):
        return network.forward_features(x).float()  # type: ignore[no-any-return, operator]


@torch.inference_mode()
def run_batches(
    network: nn.Module,
    batches: Iterable[NDArray[np.uint8]],
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = False,
    precision: str = "float32",
) -> Iterator[NDArray[np.float32]]:
    """Run a network as it is on one batch after another, in evaluation mode; its mode is restored afterwards.

    Args:
        network: on the device to compute on.
        batches: of images, (B, H, W, 3) uint8.
        view: see `forward`.
        mean: of the RGB channels, 0 to 1.
        std: of the RGB channels, 0 to 1.
        flip: average the outputs with those of the mirrored images (vectors are not scaled to length 1 again).
        precision: "float32", or "bf16" for autocast.

    Yields:
        (B, C) or (B, D) float32 for each batch.
    """
    was_training = network.training
    network.eval()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    normalize = Normalize(mean, std).to(device)
    try:
        for batch in batches:
            x = normalize(torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs = forward(network, x, view)
                if flip:
                    outputs = (outputs + forward(network, x.flip(3), view)) / 2
            yield outputs.cpu().numpy()
    finally:
        network.train(was_training)


class PreparedNetwork:
    """A copy of a network, rewritten for fast inference on its device.

    Args:
        network: a classifier, or one with an embedding head.
        config: its image size and normalisation.
        compute: "float32"; "bfloat16"; or "auto": bfloat16 on a CPU that has it in hardware, if a short measurement
            finds it faster. Some CPUs that have it are slower with it. Networks of timm stay in float32, since their
            loss of accuracy was not measured.

    Raises:
        InputError: bfloat16 for a network that is not on a CPU.
    """

    def __init__(self, network: nn.Module, config: ModelConfig, compute: Compute) -> None:
        self.device = next(network.parameters()).device
        on_cpu = self.device.type == "cpu"
        if compute == "bfloat16" and not on_cpu:
            raise InputError(f"bfloat16 is for models on a CPU, not on {self.device}.", "Use float32 there.")
        network = copy.deepcopy(network).eval().requires_grad_(False)
        fold_batch_norm(network)
        if on_cpu:
            use_dense_for_small_maps(network, config.image_size)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.bfloat16 = compute == "bfloat16"
        may_convert = on_cpu and has_bfloat16() and not any(isinstance(m, UNMEASURED) for m in network.modules())
        if self.bfloat16 or (compute == "auto" and may_convert):
            converted = copy.deepcopy(self.network)
            _convert_to_bfloat16(converted)
            if self.bfloat16 or is_faster_in_bfloat16(self.network, converted, config.image_size):
                self.network, self.bfloat16 = converted, True
        self.normalize = Normalize(config.mean, config.std).to(self.device)

    @torch.inference_mode()
    def logits_and_vectors(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Images (N, size, size, 3) to logits (N, C), None with an embedding head, and unit vectors (N, D)."""
        logits, vectors = logits_and_vectors(self.network, self._input(images), bfloat16=self.bfloat16)
        return None if logits is None else logits.float().cpu().numpy(), vectors.cpu().numpy()

    @torch.inference_mode()
    def vectors(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (N, size, size, 3) to unit vectors (N, D); the classifier is not run."""
        return vectors_of(self.network, _feature_map(self.network, self._input(images), self.bfloat16)).cpu().numpy()

    def _input(self, images: NDArray[np.uint8]) -> Tensor:
        return self.normalize(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))  # type: ignore[no-any-return]


@contextmanager
def single_threaded_workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which PyTorch and NumPy compute with one thread.

    When they split one operation among several threads, those wait for each other after every layer, and all of them
    wait for other work on the cores, such as decoding.
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
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@torch.inference_mode()
def is_faster_in_bfloat16(network: nn.Module, converted: nn.Module, size: int) -> bool:
    """Whether the feature map of a few images takes less time in bfloat16, by at least 5 %.

    Args:
        network: in float32.
        converted: the same network with convolutions in bfloat16.
        size: height and width of the images.
    """
    images = torch.zeros(PROBE_IMAGES, 3, size, size).to(memory_format=torch.channels_last)

    def seconds(network: nn.Module, bfloat16: bool) -> float:
        times = []
        for _ in range(1 + PROBE_PASSES):  # the first one sets up what the others reuse
            start = time.perf_counter()
            _feature_map(network, images, bfloat16)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return 1.05 * seconds(converted, True) < seconds(network, False)


def _convert_to_bfloat16(network: nn.Module) -> None:
    """Convert all convolutions to bfloat16, except those of the stem (or the first one), which leave autocast."""
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
