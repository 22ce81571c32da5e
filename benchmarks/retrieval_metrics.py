"""Compare our retrieval metrics with pytorch-metric-learning's AccuracyCalculator on the same vectors.

    python benchmarks/retrieval_metrics.py [--size 60000] [--dim 512] [--per-class 5] [--rounds 3] [--threads 2]

Both search the vectors among themselves and compute precision@1, R-precision and MAP@R; ours also computes its other
rank-based metrics. AccuracyCalculator uses its default, exact search with faiss-cpu, for as many neighbours as the
largest class needs (k="max_bin_count"; its default, all neighbours, would need 28.8 GB at 60,000). Neither computes
NMI, which is k-means, not search. If pytorch-metric-learning or faiss-cpu is not installed, only ours is measured.
Memory is the peak of the process during our first round, minus what it held once the vectors were made (Linux).
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lookalike.evaluation.retrieval import per_query
from lookalike.run import hardware

NAMES = {"precision_at_1": "precision_at_1", "r_precision": "r_precision", "mean_average_precision_at_r": "map_at_r"}
NEEDED = {"pytorch_metric_learning": "pytorch-metric-learning", "faiss": "faiss-cpu"}

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


def made(size: int, dim: int, per_class: int) -> tuple[Vectors, Labels]:
    """Return unit vectors around a centre per class, in random order; made in place, to keep peak memory low."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(size) // per_class)
    centres = generator.standard_normal((labels.max() + 1, dim), dtype=np.float32)
    vectors = generator.standard_normal((size, dim), dtype=np.float32)
    noise = 0.45 * dim**0.25  # so that recall is neither 0 nor 1, whatever the dimension
    for row, label in enumerate(labels):
        vectors[row] = noise * vectors[row] + centres[label]
        vectors[row] /= np.linalg.norm(vectors[row])
    return vectors, labels


def ours(vectors: Vectors, labels: Labels) -> dict[str, float]:
    """Compute the three metrics as `summary` does."""
    result = per_query(vectors, labels)
    return {name: result.mean(mine) for name, mine in NAMES.items()}


def theirs(vectors: Vectors, labels: Labels) -> dict[str, float]:
    """Compute the same metrics with AccuracyCalculator."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=tuple(NAMES), device=torch.device("cpu"), k="max_bin_count")
    return calculator.get_accuracy(vectors, labels)  # type: ignore[no-any-return]


def timed(
    measure: Callable[[Vectors, Labels], dict[str, float]], vectors: Vectors, labels: Labels
) -> tuple[float, dict[str, float]]:
    """Return the seconds and the metrics."""
    start = time.perf_counter()
    numbers = measure(vectors, labels)
    return time.perf_counter() - start, numbers


def held() -> float:
    """Return the memory of the process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> float:
    """Return the peak memory of the process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=60_000, help="vectors")
    parser.add_argument("--dim", type=int, default=512, help="numbers of a vector")
    parser.add_argument("--per-class", type=int, default=5, help="vectors of a class")
    parser.add_argument("--rounds", type=int, default=3, help="each measures one, then the other")
    parser.add_argument("--threads", type=int, default=2, help="of both")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if not missing:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
        theirs(*made(200, 8, 5))  # imports the libraries
    ours(*made(200, 8, 5))
    vectors, labels = made(arguments.size, arguments.dim, arguments.per_class)
    before = held()
    rounds, beyond = [], 0.0
    for _ in range(arguments.rounds):
        seconds, numbers = timed(ours, vectors, labels)
        beyond = beyond or peak() - before
        rounds.append((seconds, None if missing else timed(theirs, vectors, labels)))
        if (other := rounds[-1][1]) is not None:
            worst = max(abs(numbers[name] - other[1][name]) for name in NAMES)
            if worst > 1e-4:
                raise SystemExit(f"the numbers differ by {worst}: {numbers} and {other[1]}")

    machine = hardware()
    print(f"{arguments.threads} threads on {machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}")
    print(f"{arguments.size:,} vectors of {arguments.dim}, {arguments.per_class} a class, {arguments.rounds} rounds")
    print(", ".join(f"{NAMES[name]} {value:.4f}" for name, value in numbers.items()))
    print(f"ours                {statistics.median(a for a, _ in rounds):8.2f} s")
    print(f"memory beyond the vectors {beyond / 1e6:,.0f} MB")
    if missing:
        print(f"AccuracyCalculator: not measured, for want of {' and '.join(missing)}")
        return
    others = [(a, b[0]) for a, b in rounds if b is not None]
    print(f"AccuracyCalculator  {statistics.median(b for _, b in others):8.2f} s")
    print(f"ratio {statistics.median(b / a for a, b in others):.2f} (median of the rounds')")


if __name__ == "__main__":
    main()
