"""Retrieval metrics: how often the nearest neighbours of a query have its class.

The *relevant* images of a query are the gallery images of its class, without the query itself and its group (see
`nearest`); R is their number. Queries with R = 0 are excluded from every mean, and counted. The functions scale
embeddings to unit length and use exact neighbours, sorted by cosine and then by index. Every metric is a mean over
queries.

Sources: Musgrave, Belongie, Lim, 2020, "A metric learning reality check" (https://arxiv.org/abs/2003.08505) for
R-precision and MAP@R; Jégou et al., 2011, "Product quantization for nearest neighbor search" for Recall@K: whether any
of the first K neighbours is relevant.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookalike.errors import InputError
from lookalike.evaluation.knn import Neighbours, nearest, unit_vectors

KS = (1, 2, 4, 8)


THRESHOLD = 0.75


class Others(TypedDict, total=False):
    """Optional arguments for the gallery and the groups; see `per_query`."""

    gallery: ArrayLike | None
    gallery_labels: ArrayLike | None
    groups: ArrayLike | None
    gallery_groups: ArrayLike | None


@dataclass(frozen=True)
class PerQuery:
    """Metric values per query.

    Args:
        queries: (M,) int64, row indices of the queries with R > 0.
        excluded: number of queries with R = 0.
        values: metric name, as in `retrieval_summary`, to (M,) float64 values.
    """

    queries: NDArray[np.int64]
    excluded: int
    values: dict[str, NDArray[np.float64]]

    def mean(self, name: str) -> float:
        """Return the mean of one metric over the queries."""
        return float(self.values[name].mean())


def per_query(
    embeddings: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = KS,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
    threshold: float = THRESHOLD,
    at_r: bool = True,
) -> PerQuery:
    """Compute all rank-based metrics of every query with one search.

    Args:
        embeddings: (N, D) numbers, the queries.
        labels: (N,) int, at least 0.
        ks: values of K.
        gallery: (M, D) numbers to search. By default, each query is searched among all other queries.
        gallery_labels: (M,) int, required with `gallery`.
        groups: (N,) int; neighbours in the query's group are excluded.
        gallery_groups: (M,) int, required with both `groups` and `gallery`.
        threshold: minimum cosine (exclusive) of a hit in `threshold_recall_at_k`.
        at_r: also compute `r_precision` and `map_at_r`, which need R neighbours per query.

    Raises:
        InputError: invalid embeddings, labels, groups or ks, or no query has a relevant image.
    """
    if not ks or any(k != int(k) or k < 1 for k in ks):
        raise InputError(f"ks={tuple(ks)} cannot be counted to.", "Give whole numbers of 1 or more.")
    if (gallery is None) != (gallery_labels is None):
        raise InputError("gallery and gallery_labels belong together.", "Give both or neither.")
    own = _checked(labels, embeddings, "labels")
    theirs = own if gallery is None else _checked(gallery_labels, gallery, "gallery_labels")
    relevant = _relevant(own, theirs, groups, gallery_groups, itself=gallery is None)
    queries = np.flatnonzero(relevant)
    depth = int(max(*ks, relevant.max() if at_r else 1))
    found = nearest(embeddings, depth, gallery=gallery, groups=groups, gallery_groups=gallery_groups)
    parts = []
    for some in found:  # runs even if no query has R > 0, so that errors in the embeddings are reported first
        rows = np.arange(some.first, some.first + len(some.indexes))
        parts.append(_measure(some, own[rows], theirs, relevant[rows], ks, threshold, at_r))
    if not len(queries):
        raise InputError(
            f"none of {len(own)} queries has an image of its class in the gallery.", "Nothing can be measured on it."
        )
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PerQuery(queries, len(own) - len(queries), values)


def _measure(
    found: Neighbours,
    own: NDArray[np.int64],
    theirs: NDArray[np.int64],
    relevant: NDArray[np.int64],
    ks: Sequence[int],
    threshold: float,
    at_r: bool,
) -> dict[str, NDArray[np.float64]]:
    """Compute the metrics of a block of queries, without those with R = 0."""
    counted = relevant > 0
    indexes, r = found.indexes[counted], relevant[counted]
    hits = (theirs[indexes] == own[counted, None]) & (indexes >= 0)
    near = hits & (found.cosines[counted] > threshold)
    values: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        values[f"recall_at_{k}"] = hits[:, :k].any(1).astype(np.float64)
        values[f"relevant_in_top_{k}"] = hits[:, :k].sum(1) / r
        values[f"threshold_recall_at_{k}"] = near[:, :k].any(1).astype(np.float64)
    values["precision_at_1"] = hits[:, 0].astype(np.float64)
    if at_r:
        ranks = np.arange(1, hits.shape[1] + 1)
        hits = hits & (ranks <= r[:, None])
        values["r_precision"] = hits.sum(1) / r
        values["map_at_r"] = np.where(hits, hits.cumsum(1) / ranks, 0).sum(1) / r
    return values


def recall_at_k(
    embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS, **others: Unpack[Others]
) -> dict[int, float]:
    """Compute Recall@K: the share of queries with at least one relevant image among the K nearest neighbours.

    Args:
        embeddings: (N, D) numbers.
        labels: (N,) int.
        ks: values of K.
        others: `gallery`, `gallery_labels`, `groups` and `gallery_groups`; see `per_query`.

    Returns:
        K to Recall@K, 0..1.

    Raises:
        InputError: see `per_query`.

    >>> recall_at_k([[1, 0], [1, 0.1], [0, 1], [0.5, 1]], [0, 1, 1, 0], ks=(1, 2, 3))
    {1: 0.0, 2: 0.5, 3: 1.0}
    """
    result = per_query(embeddings, labels, ks, at_r=False, **others)
    return {k: result.mean(f"recall_at_{k}") for k in ks}


def precision_at_1(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """Compute the share of queries whose nearest neighbour is relevant; equal to Recall@1."""
    return recall_at_k(embeddings, labels, (1,), **others)[1]


def r_precision(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """Compute R-precision: the share of relevant images among the R nearest neighbours.

    Arguments and errors are those of `recall_at_k`.
    """
    return per_query(embeddings, labels, (1,), **others).mean("r_precision")


def map_at_r(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """Compute MAP@R: the sum of the precisions at the ranks of the hits up to R, divided by R.

    Arguments and errors are those of `recall_at_k`.

    >>> round(map_at_r([[1, 0], [1, 0.1], [1, 0.3], [0, 1]], [0, 1, 0, 0]), 4)  # (1/4 + 1/4 + 1/2) / 3
    0.3333
    """
    return per_query(embeddings, labels, (1,), **others).mean("map_at_r")


def relevant_in_top_k(
    embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS, **others: Unpack[Others]
) -> dict[int, float]:
    """Compute recall as defined for search engines: the share of the relevant images found among the K nearest.

    If R > K, the value is below 1. It is not comparable with Recall@K. Arguments and errors are those of `recall_at_k`.
    """
    result = per_query(embeddings, labels, ks, at_r=False, **others)
    return {k: result.mean(f"relevant_in_top_{k}") for k in ks}


def threshold_recall_at_k(
    embeddings: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = KS,
    *,
    threshold: float = THRESHOLD,
    **others: Unpack[Others],
) -> dict[int, float]:
    """Compute Recall@K, counting only hits whose cosine with the query is greater than `threshold`.

    The queries are those of Recall@K, so the value never exceeds Recall@K. It depends on the scale of the cosines as
    well as on their order: a perfect ranking scores 0 if all cosines are small. Arguments and errors are those of
    `recall_at_k`.
    """
    result = per_query(embeddings, labels, ks, threshold=threshold, at_r=False, **others)
    return {k: result.mean(f"threshold_recall_at_{k}") for k in ks}


def retrieval_summary(
    embeddings: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = KS,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
    threshold: float = THRESHOLD,
    with_nmi: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute all retrieval metrics as a JSON-serializable dict.

    Args:
        embeddings: (N, D) numbers; see `per_query` for this and the following arguments.
        labels: (N,) int.
        ks: values of K.
        gallery: (M, D) numbers.
        gallery_labels: (M,) int.
        groups: (N,) int.
        gallery_groups: (M,) int.
        threshold: minimum cosine of `threshold_recall_at_k`.
        with_nmi: also compute `nmi` if no gallery is given; k-means is slow with many classes.
        draws: number of bootstrap resamples.
        seed: seed of the resamples and of k-means.

    Returns:
        `queries`, the number with R > 0; `excluded`, the number with R = 0; `gallery`, the number of images searched;
        `dim`; `threshold`; for each K, `recall_at_K`, `relevant_in_top_K` and `threshold_recall_at_K`;
        `precision_at_1`, `r_precision`, `map_at_r` and `nmi`, all in 0..1; `intervals`, the lower and upper bounds of
        each metric except `nmi`.

    Raises:
        InputError: see `per_query`.
    """
    result = per_query(
        embeddings,
        labels,
        ks,
        gallery=gallery,
        gallery_labels=gallery_labels,
        groups=groups,
        gallery_groups=gallery_groups,
        threshold=threshold,
    )
    counts = {
        "queries": len(result.queries),
        "excluded": result.excluded,
        "gallery": len(np.asarray(labels if gallery_labels is None else gallery_labels)),
        "dim": int(np.shape(embeddings)[1]),
        "threshold": threshold,
    }
    clusters = {"nmi": nmi(embeddings, labels, seed=seed)} if with_nmi and gallery is None else {}
    means = {name: result.mean(name) for name in result.values}
    return {**counts, **means, **clusters, "intervals": bootstrap(result.values, draws=draws, seed=seed)}


def _checked(labels: ArrayLike | None, embeddings: ArrayLike | None, what: str) -> NDArray[np.int64]:
    """Convert labels to int64.

    Raises:
        InputError: the labels do not match the embeddings, or a label is below 0.
    """
    array = np.asarray(labels)
    shape: tuple[int, ...] = np.asarray(embeddings).shape
    count = shape[0] if shape else 0
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(
            f"{what} of shape {array.shape} and type {array.dtype} do not fit {count} embeddings.",
            "Give one whole number an image.",
        )
    if count and array.min() < 0:
        raise InputError(f"{what}: some are below 0.", "Leave unlabelled images out.")
    return array.astype(np.int64)


def _relevant(
    own: NDArray[np.int64],
    theirs: NDArray[np.int64],
    groups: ArrayLike | None,
    gallery_groups: ArrayLike | None,
    *,
    itself: bool,
) -> NDArray[np.int64]:
    """Compute R of each query, (N,) int64."""
    alike = _occurrences(own, theirs)
    if groups is None:
        return alike - 1 if itself else alike
    mine = np.asarray(groups, np.int64)
    others = mine if gallery_groups is None else np.asarray(gallery_groups, np.int64)
    if mine.shape != own.shape or others.shape != theirs.shape:
        raise InputError(
            f"groups of shapes {mine.shape} and {others.shape} do not fit labels of {own.shape} and {theirs.shape}.",
            "Give one group id an image.",
        )
    ids = np.unique(np.concatenate([mine, others]))
    both = own * len(ids) + np.searchsorted(ids, mine), theirs * len(ids) + np.searchsorted(ids, others)
    return alike - _occurrences(*both)


def _occurrences(of: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the occurrences in `among` of each element of `of`, (N,) int64."""
    known, counts = np.unique(among, return_counts=True)
    place = np.minimum(np.searchsorted(known, of), len(known) - 1)
    return np.where(known[place] == of, counts[place], 0).astype(np.int64)


# Bootstrap intervals


def bootstrap(
    values: dict[str, NDArray[np.float64]], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Compute bootstrap percentile intervals of the means over queries.

    All metrics use the same resamples. The intervals account for the sampling of queries, not for the choice of test
    classes or the training seed.

    Args:
        values: metric name to (M,) float, one value per query.
        draws: number of resamples.
        seed: seed of the resamples.
        level: share of the resampled means inside the interval.

    Returns:
        Metric name to [low, high].
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


# Normalized mutual information


def nmi(embeddings: ArrayLike, labels: ArrayLike, *, seed: int = 0, restarts: int = 1) -> float:
    """Compute the normalized mutual information of classes and k-means clusters, 0..1.

    It is the mutual information divided by the mean of the two entropies. Embeddings are scaled to unit length. The
    number of clusters is the number of distinct labels, or of distinct vectors if that is lower. k-means++ chooses the
    initial centres; with one start, the value can differ by 0.01 between seeds. Source: Manning, Raghavan, Schütze,
    2008, "Introduction to information retrieval", chapter 16.3.

    Args:
        embeddings: (N, D) numbers.
        labels: (N,) int.
        seed: seed of k-means.
        restarts: number of k-means starts; the one with the lowest sum of squared distances is used.

    Raises:
        InputError: invalid embeddings, labels that do not match them, or scikit-learn is not installed.
    """
    vectors, classes = unit_vectors(embeddings), np.asarray(labels)
    if classes.shape != (len(vectors),):
        raise InputError(
            f"labels of shape {classes.shape} do not fit {len(vectors)} embeddings.", "Give one label an image."
        )
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.metrics import normalized_mutual_info_score
    except ImportError as error:
        raise InputError(
            f"nmi: scikit-learn cannot be imported ({error}).", "Install it: pip install scikit-learn."
        ) from None
    means = KMeans(len(np.unique(classes)), n_init=restarts, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        clusters = means.fit_predict(vectors)
    return float(normalized_mutual_info_score(classes, clusters))
