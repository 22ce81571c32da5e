"""Compare a training step with our per-position convolution and with PyTorch's, on the same network.

    python benchmarks/small_maps.py [--model resnet18] [--rounds 5]

Both ways train the same network on the same batch, in turns, in one process. The ratio is computed per round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from lookalike.models import layers
from lookalike.models.registry import create_model
from lookalike.run import hardware

BATCH = 256


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    arguments = parser.parse_args()
    options = {"stem": "patch"} if "resnet" in arguments.model else {}
    network = create_model(arguments.model, 200, options).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, foreach=True)
    labels = torch.randint(0, 200, (BATCH,))

    def seconds(x: torch.Tensor, most: int) -> float:
        layers.MOST_POSITIONS = most
        start = time.perf_counter()
        for _ in range(arguments.steps):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return (time.perf_counter() - start) / arguments.steps

    most = layers.MOST_POSITIONS
    machine = hardware()
    print(f"{machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}, bf16, batch {BATCH}")
    print(f"{arguments.model}, medians of {arguments.rounds} rounds\npixels   plain images/s   ours images/s   ratio")
    for size in (64, 48, 32):
        x = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
        seconds(x, 0)
        seconds(x, most)
        rounds = [(seconds(x, 0), seconds(x, most)) for _ in range(arguments.rounds)]
        plain, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(p / o for p, o in rounds)
        print(f"{size:6} {BATCH / plain:16.0f} {BATCH / ours:15.0f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
