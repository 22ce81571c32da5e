"""A map of the embeddings: images near each other on it are mostly near each other in truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError

FEWEST = 10  # points; fewer make no map
PERPLEXITY = 30.0
FLAT = 1e-6  # spread below which vectors are one point


def chosen(
    labels: NDArray[np.int64], named: Sequence[int], *, most: int, each: int, seed: int = 0
) -> NDArray[np.int64]:
    """The rows that go on the map, ascending: at most `each` of the named classes, then others up to `most`, drawn.

    Args:
        labels: (N,) int64.
        named: classes that shall be seen.
        most: rows in all; named classes come first.
        each: rows of a named class.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    if len(labels) <= most:
        return np.arange(len(labels))
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:each] for label in named]
    rows = np.concatenate([*drawn, np.empty(0, np.int64)])[:most]
    others = np.flatnonzero(~np.isin(labels, list(named)))
    rest = generator.permutation(others)[: most - len(rows)]
    return np.sort(np.concatenate([rows, rest]))


def layout(vectors: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float64] | None:
    """Two coordinates for each vector, by t-SNE; None where there is nothing to lay out.

    One thread computes it, so that the same vectors give the same map. Source: van der Maaten, Hinton, 2008,
    "Visualizing data using t-SNE".

    Args:
        vectors: (N, D) float32 of length 1; some thousands at most.
        seed: of the optimisation.

    Returns:
        (N, 2) float64 around 0, the farthest at 1 in some direction; None with few vectors, or all the same.

    Raises:
        InputError: scikit-learn is not installed.
    """
    if len(vectors) < FEWEST or vectors.shape[1] < 2 or vectors.std(0).max() < FLAT:
        return None
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise InputError(
            f"the map: scikit-learn cannot be imported ({error}).", "Install it: pip install scikit-learn."
        ) from None
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    with threadpool_limits(1):
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(vectors)
    places = np.asarray(places, np.float64)
    places -= (places.min(0) + places.max(0)) / 2
    return np.asarray(places / np.abs(places).max())
