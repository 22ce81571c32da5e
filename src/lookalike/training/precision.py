"""The precision that a network is trained in: `auto` measures which one is faster on this machine.

Some CPUs multiply bfloat16 in hardware and train about twice as fast with it, others have the same instructions and are
slower; without them, a step takes several times as long as in float32.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lookalike.recipe import Training
from lookalike.training.distributed import DistributedContext

Precision = Literal["bf16", "float32"]
PROBE_IMAGES = 32
PROBE_SECONDS = 0.5  # of measuring each, at most; one pass at least
CLEARLY_SLOWER = 2.0  # times as long in the first pass: not measured any further
ADVANTAGE = 1.05  # bf16 has to be faster by this much: what is as fast in float32 is trained in float32


@dataclass(frozen=True)
class PrecisionProbe:
    """A chosen precision.

    Args:
        precision: the faster one.
        milliseconds: of a forward and backward pass with `PROBE_IMAGES` images in each precision; empty if nothing was
            measured: the recipe names the precision, or training runs on a GPU, in bf16 if the GPU has it.
    """

    precision: Precision
    milliseconds: dict[Precision, float]


def choose_precision(settings: Training, network: nn.Module, size: int, context: DistributedContext) -> PrecisionProbe:
    """The precision that a recipe names, or for "auto" what `probe_precision` finds in the main process.

    Args:
        settings: of the recipe.
        network: as `probe_precision` takes it.
        size: height and width of the largest images.
        context: the processes of the run. All of them measure, since they share the cores.
    """
    if settings.precision != "auto":
        return PrecisionProbe(settings.precision, {})
    probe = probe_precision(network, size, context.device, settings.batch_size // context.world_size)
    is_bf16 = context.max(int(probe.precision == "bf16" and context.is_main_process))
    return PrecisionProbe("bf16" if is_bf16 else "float32", probe.milliseconds)


def probe_precision(network: nn.Module, size: int, device: torch.device, batch_size: int) -> PrecisionProbe:
    """Measure a forward and a backward pass of the network in both precisions, about a second in all.

    Network, gradients, batch-norm statistics and random number generators stay as they are.

    Args:
        network: on `device`, in the memory format that it is trained in.
        size: height and width of the images.
        device: where it is trained.
        batch_size: of the training; the probe uses `PROBE_IMAGES` of them at most.
    """
    if device.type != "cpu":
        supported = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        return PrecisionProbe("bf16" if supported else "float32", {})
    with torch.random.fork_rng(devices=[]):
        twin = copy.deepcopy(network).train()
        images = torch.randn(min(PROBE_IMAGES, batch_size), 3, size, size).to(memory_format=torch.channels_last)
        float32 = _seconds(twin, images, "float32", math.inf)
        bf16 = _seconds(twin, images, "bf16", CLEARLY_SLOWER * float32)
    chosen: Precision = "bf16" if bf16 * ADVANTAGE < float32 else "float32"
    return PrecisionProbe(chosen, {"bf16": round(1000 * bf16, 2), "float32": round(1000 * float32, 2)})


def _seconds(network: nn.Module, images: torch.Tensor, precision: Precision, give_up: float) -> float:
    """The least time of a few passes, after one that warms up; that one's, where it takes longer than `give_up`."""
    best, passes, start = math.inf, 0, 0.0
    while passes < 2 or time.perf_counter() - start < PROBE_SECONDS:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(images)
        outputs.float().square().mean().backward()
        network.zero_grad(set_to_none=True)
        took = time.perf_counter() - began
        if passes == 0:
            if took > 2 * give_up:  # the first pass also sets up what later ones reuse
                return took
            start = time.perf_counter()
        else:
            best = min(best, took)
            if best > give_up:
                return best
        passes += 1
    return best
