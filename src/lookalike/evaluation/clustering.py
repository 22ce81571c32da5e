"""Normalised mutual information: whether clusters that nobody labelled are the classes."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from lookalike.errors import InputError
from lookalike.evaluation.neighbours import unit_vectors


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
