"""Measure how much time a training step on a CPU saves if memory is kept from step to step.

    python benchmarks/kept_memory.py [--rounds 5] [--networks weave]

Both ways train the same network on the same batch, in turns, each time in a new process, since memory that one way
leaves would help the other. The ratio is computed per round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from lookalike.models.registry import create_model
from lookalike.run import hardware
from lookalike.training.malloc import keep_freed_memory

BATCH = 256
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"stem": "patch"},
    "resnet18 (stem imagenet)": {"stem": "imagenet"},
    "weave": {},
}


def seconds(name: str, size: int, steps: int, kept: bool) -> float:
    """Return the seconds per step over `steps` steps, after two that are not counted."""
    network = create_model(name.split()[0], 200, NETWORKS[name]).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    x = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 200, (BATCH,))
    start = 0.0
    with keep_freed_memory(torch.device("cpu")) if kept else contextlib.nullcontext():
        for number in range(-2, steps):
            if number == 0:
                start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - start) / steps


def apart(name: str, size: int, steps: int, kept: bool) -> float:
    """Run `seconds` in a new process."""
    command = [sys.executable, __file__, "--one", name, str(size), str(steps), str(int(kept))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of each in a round")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, *numbers = given.one
        size, steps, kept = map(int, numbers)
        print(seconds(name, size, steps, bool(kept)))
        return
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}, bf16, batch {BATCH}")
    print(f"medians of {given.rounds} rounds\n{'network':24} pixels   handed back images/s   kept images/s   ratio")
    for name in given.networks:
        for size in (64, 48, 32):
            rounds = [[apart(name, size, given.steps, kept) for kept in (False, True)] for _ in range(given.rounds)]
            plain, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(p / k for p, k in rounds)
            print(f"{name:24} {size:6} {BATCH / plain:22.0f} {BATCH / ours:15.0f} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
