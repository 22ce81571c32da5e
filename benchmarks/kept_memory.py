"""What keeping memory from step to step saves in a training step on a CPU.

    python benchmarks/kept_memory.py [--rounds 5]

Both ways train the same network on the same batch, in turns, in one process; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from lookalike.models.build import build
from lookalike.run import hardware
from lookalike.training.memory import kept_memory

BATCH = 256
CPU = torch.device("cpu")
NETWORKS = {
    "resnet18, stem imagenet": ("resnet18", {"stem": "imagenet"}),
    "resnet18, stem patch": ("resnet18", {"stem": "patch"}),
    "weave": ("weave", {}),
}


def seconds(network: nn.Module, optimizer: torch.optim.Optimizer, size: int, steps: int) -> float:
    """Of one step, by so many; a first one is not counted."""
    x = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 200, (BATCH,))
    start = 0.0
    for number in range(steps + 1):
        if number == 1:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    given = parser.parse_args()
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}, bf16, batch {BATCH}")
    print(f"medians of {given.rounds} rounds\n{'network':24} pixels  handed back images/s  kept images/s  ratio")
    for name, (kind, options) in NETWORKS.items():
        network = build(kind, 200, options).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        for size in (64, 48, 32):
            rounds = []
            for _ in range(given.rounds):
                pair = []
                for way in (contextlib.nullcontext(), kept_memory(CPU)):
                    with way:
                        pair.append(seconds(network, optimizer, size, given.steps))
                rounds.append(pair)
            plain, kept = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(p / k for p, k in rounds)
            print(f"{name:24} {size:6} {BATCH / plain:21.0f} {BATCH / kept:14.0f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
