"""Retrieval measured: how often the images nearest to a query show the same class.

A query's *relevant* images are those of its class in the gallery, itself and its group (see `nearest`) left out; R is
their number. Queries with R = 0 can find nothing: they are left out of every mean, and counted. Embeddings are scaled
to unit length here, neighbours are exact and ordered by cosine, equal ones by index. Every number is a mean over
queries.

Sources: Musgrave, Belongie, Lim, 2020, "A metric learning reality check" (https://arxiv.org/abs/2003.08505) for
R-precision and MAP@R; Jégou et al., 2011, "Product quantization for nearest neighbor search" for Recall@K as used here:
whether there is any hit among the first K.
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
    """What a query is searched in, and what is left out there: as for `per_query`."""

    gallery: ArrayLike | None
    gallery_labels: ArrayLike | None
    groups: ArrayLike | None
    gallery_groups: ArrayLike | None


@dataclass(frozen=True)
class PerQuery:
    """The numbers of each query that was counted.

    Args:
        queries: (M,) int64, their rows.
        excluded: how many queries had nothing relevant in the gallery.
        values: (M,) float64 of each number, under the names that `summary` uses.
    """

    queries: NDArray[np.int64]
    excluded: int
    values: dict[str, NDArray[np.float64]]

    def mean(self, name: str) -> float:
        """The mean of one number over the queries that were counted."""
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
    """All rank-based numbers of every query, from one search.

    Args:
        embeddings: (N, D) numbers, the queries.
        labels: (N,) int, 0 or more.
        ks: the K of the numbers that have one.
        gallery: (M, D) numbers to search in, by default the queries, each without itself.
        gallery_labels: (M,) int, given with `gallery`.
        groups: (N,) int; a query's neighbours of its own group are left out.
        gallery_groups: (M,) int, given with `groups` where there is a gallery.
        threshold: the cosine that `threshold_recall_at_k` asks for.
        at_r: give `r_precision` and `map_at_r` too, for which each query needs R neighbours.

    Raises:
        InputError: embeddings, labels, groups or ks that cannot be used, or nothing relevant for any query.
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
    for some in found:  # also where no query counts: what is wrong with the embeddings is then said first
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
    """The numbers of some queries, those left out that have nothing relevant."""
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
    """The share of queries with any image of their class among the K nearest others, by K.

    Args:
        embeddings: (N, D) numbers.
        labels: (N,) int.
        ks: how many neighbours are looked at.
        others: `gallery`, `gallery_labels`, `groups` and `gallery_groups`, as for `per_query`.

    Raises:
        InputError: as `per_query`.

    >>> recall_at_k([[1, 0], [1, 0.1], [0, 1], [0.5, 1]], [0, 1, 1, 0], ks=(1, 2, 3))
    {1: 0.0, 2: 0.5, 3: 1.0}
    """
    result = per_query(embeddings, labels, ks, at_r=False, **others)
    return {k: result.mean(f"recall_at_{k}") for k in ks}


def precision_at_1(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """The share of queries whose nearest other image is of their class; the same number as Recall@1."""
    return recall_at_k(embeddings, labels, (1,), **others)[1]


def r_precision(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """Of a query's R nearest others, the share that are of its class; R is the number of all that are.

    Args and errors: as `recall_at_k`.
    """
    return per_query(embeddings, labels, (1,), **others).mean("r_precision")


def map_at_r(embeddings: ArrayLike, labels: ArrayLike, **others: Unpack[Others]) -> float:
    """Mean average precision at R: the precision at each rank up to R that holds a hit, summed and divided by R.

    Args and errors: as `recall_at_k`.

    >>> round(map_at_r([[1, 0], [1, 0.1], [1, 0.3], [0, 1]], [0, 1, 0, 0]), 4)  # (1/4 + 1/4 + 1/2) / 3
    0.3333
    """
    return per_query(embeddings, labels, (1,), **others).mean("map_at_r")


def relevant_in_top_k(
    embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS, **others: Unpack[Others]
) -> dict[int, float]:
    """The relevant images among the K nearest others over all relevant ones, by K: recall as search engines mean it.

    With R above K it cannot reach 1. It is no Recall@K, and is not to be set beside one. Args and errors: as
    `recall_at_k`.
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
    """Recall@K in which a hit counts only if its cosine with the query is above a threshold.

    That is: the share of queries with any image, among the K nearest others, that is of their class *and* whose cosine
    is greater than `threshold`. Queries are those of Recall@K, so it is never above it. It measures the scale of the
    cosines as much as their order: vectors that rank perfectly get 0 where all cosines are small. Args and errors: as
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
    """The numbers of a result, ready for JSON.

    Args:
        embeddings: (N, D) numbers, and so on: as for `per_query`.
        labels: (N,) int.
        ks: the K of the numbers that have one.
        gallery: (M, D) numbers.
        gallery_labels: (M,) int.
        groups: (N,) int.
        gallery_groups: (M,) int.
        threshold: of `threshold_recall_at_k`.
        with_nmi: give `nmi` too, where there is no gallery apart; k-means of many classes takes long.
        draws: resamples for the intervals.
        seed: of the resamples and of k-means.

    Returns:
        `queries`, those counted; `excluded`, those without anything relevant; `gallery`, images searched; `dim`;
        `threshold`; for each K `recall_at_K`, `relevant_in_top_K` and `threshold_recall_at_K`; `precision_at_1`,
        `r_precision`, `map_at_r`, `nmi`, all in 0..1; `intervals`, low and high of each but `nmi`.

    Raises:
        InputError: as `per_query`.
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
    """Labels as int64, one for each embedding.

    Raises:
        InputError: another number of them, or one below 0.
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
    """R of each query, (N,) int64."""
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
    """How often each number occurs among others, (N,) int64."""
    known, counts = np.unique(among, return_counts=True)
    place = np.minimum(np.searchsorted(known, of), len(known) - 1)
    return np.where(known[place] == of, counts[place], 0).astype(np.int64)


# How far a mean over queries could be off: bootstrap intervals.


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


# Normalised mutual information: whether clusters that nobody labelled are the classes.


def nmi(embeddings: ArrayLike, labels: ArrayLike, *, seed: int = 0, restarts: int = 1) -> float:
    """Mutual information of classes and k-means clusters over the mean of their entropies, 0..1.

    Embeddings are scaled to unit length; there are as many clusters as classes that occur; the start is k-means++. One
    start is one draw: between seeds the number easily moves by a hundredth, and more clusters than distinct vectors are
    as many as those. Source: Manning, Raghavan, Schütze, 2008, "Introduction to information retrieval", chapter 16.3.

    Args:
        embeddings: (N, D) numbers.
        labels: (N,) int.
        seed: of k-means.
        restarts: starts of k-means, of which the one with the least squared distances is kept.

    Raises:
        InputError: embeddings that cannot be compared, labels that do not fit, or scikit-learn is not installed.
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
