"""Compare the speed of runtimes on the same images: plain PyTorch, ONNX Runtime, and the prepared network of galleries.

    python benchmarks/engines.py [MODEL] [--batches 1 8 32] [--seconds 3] [--rounds 3] [--threads 2]

MODEL is a model folder; the default is the packaged model. The runtimes take turns, each running the same batch
repeatedly for some seconds. One forward pass returns logits and vectors; that of galleries returns vectors only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lookalike.models.pretrained import ImageModel, load
from lookalike.models.runtime import OnnxRuntime, TorchRuntime
from lookalike.run import hardware

Run = Callable[[NDArray[np.uint8]], object]
PACKAGES = ("torch", "onnxruntime")


def eager(model: ImageModel) -> Run:
    """Plain PyTorch in float32, with one forward pass for both outputs."""
    mean, std = (255 * torch.tensor(each)[:, None, None] for each in (model.config.mean, model.config.std))

    @torch.inference_mode()
    def run(images: NDArray[np.uint8]) -> object:
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - mean) / std
        features = model.network.forward_features(x)
        logits = model.network.forward_head(features)
        vectors = torch.nn.functional.normalize(features.mean((2, 3)), dim=1)
        return logits.numpy(), vectors.numpy()

    return run


def rate(run: Run, images: NDArray[np.uint8], seconds: float) -> float:
    """Images per second."""
    run(images)
    start, turns = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        run(images)
        turns += 1
    return turns * len(images) / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load(given.model)
    size = model.config.image_size
    machine = hardware()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{given.threads} threads on {machine['cores']} cores of {machine['cpu']}, {date.today()}, {packages}")
    print(f"{model.config.name} at {size} px, medians of {given.rounds} rounds")
    print("batch   eager/s   ONNX Runtime/s   ratio   gallery/s   ratio")
    with tempfile.TemporaryDirectory() as cache:
        runtimes: list[Run] = [
            eager(model),
            OnnxRuntime(model, given.threads, Path(cache)).run,
            TorchRuntime(model).embed,
        ]
        for batch in given.batches:
            images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
            rounds = [[rate(run, images, given.seconds) for run in runtimes] for _ in range(given.rounds)]
            rates = [statistics.median(one) for one in zip(*rounds, strict=True)]
            ratios = [statistics.median(one[k] / one[0] for one in rounds) for k in (1, 2)]
            onnx, gallery = f"{rates[1]:14,.0f}   {ratios[0]:5.2f}", f"{rates[2]:9,.0f}   {ratios[1]:5.2f}"
            print(f"{batch:5}   {rates[0]:7,.0f}   {onnx}   {gallery}")


if __name__ == "__main__":
    main()
