"""How far a mean over queries could be off: bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bootstrap(
    values: dict[str, NDArray[np.float64]], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Percentile intervals of the means, low and high, from resampled queries (the same resamples for each number).

    They cover the draw of queries. They do not cover which classes were tested, or another seed of training.

    Args:
        values: (M,) float of each number, a value a query.
        draws: resamples.
        seed: of their generator.
        level: share of the resampled means that lie within.
    """
    table = np.stack(list(values.values()), 1)
    generator = np.random.default_rng(seed)
    count = len(table)
    means = np.empty((draws, table.shape[1]))
    for draw in range(draws):
        times = np.bincount(generator.integers(0, count, count), minlength=count)
        means[draw] = times @ table / count
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: [float(low[place]), float(high[place])] for place, name in enumerate(values)}
