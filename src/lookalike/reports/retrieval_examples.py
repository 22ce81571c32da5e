"""Examples for the retrieval report: queries with their neighbours, class results, and similar wrong pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.evaluation.knn import nearest, unit_vectors
from lookalike.image.encoding import jpeg_data_uri
from lookalike.reports.html import IMAGE_SIDE, ClassRow

DEPTH = 8  # neighbours per query


@dataclass(frozen=True)
class Photo:
    """An image in the report: data URI, side in pixels, and class name."""

    source: str
    side: int
    name: str


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of a query: its cosine, and whether it has the class of the query."""

    photo: Photo
    cosine: float
    right: bool


@dataclass(frozen=True)
class ExampleQuery:
    """A query with its neighbours, the number of correct ones, and the largest possible number."""

    photo: Photo
    neighbours: list[Neighbour]
    right: int
    possible: int


@dataclass(frozen=True)
class WrongPair:
    """Two images of different classes and their cosine."""

    one: Photo
    other: Photo
    cosine: float


class RetrievalFindings:
    """The nearest neighbours of each image among all other images.

    Args:
        embeddings: (N, D) numbers.
        labels: (N,) int64, indices into `class_names`.
        images: (N, S, S, 3) uint8.
        class_names: C names.

    Raises:
        InputError: invalid embeddings, labels or images that do not match them, or no query with a relevant image.
    """

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        labels: NDArray[np.int64],
        images: NDArray[np.uint8],
        class_names: Sequence[str],
    ) -> None:
        self.vectors, self.labels, self.images, self.names = unit_vectors(embeddings), labels, images, list(class_names)
        count = len(self.vectors)
        if labels.shape != (count,) or len(images) != count:
            raise InputError(
                f"{count} embeddings, labels of shape {labels.shape} and {len(images)} images do not fit.",
                "Give one label and one image an embedding.",
            )
        if labels.min() < 0 or labels.max() >= len(self.names):
            raise InputError(
                f"labels from {labels.min()} to {labels.max()} do not fit {len(self.names)} class names.",
                "Give a name for each class.",
            )
        self.relevant = np.bincount(labels)[labels] - 1  # (N,), R of each query
        self.counted = self.relevant > 0
        if not self.counted.any():
            raise InputError(
                f"none of {count} queries has another image of its class.", "There is nothing to report on."
            )
        found = list(nearest(self.vectors, DEPTH))
        self.indexes = np.concatenate([some.indexes for some in found])  # (N, DEPTH), padded with -1
        self.cosines = np.concatenate([some.cosines for some in found])
        self.hits = (labels[self.indexes] == labels[:, None]) & (self.indexes >= 0)

    def chance(self) -> float:
        """Return the expected Recall@1 of random neighbours."""
        return float((self.relevant[self.counted] / (len(self.labels) - 1)).mean())

    def classes(self) -> list[tuple[int, ClassRow]]:
        """Return (label, row) of all classes, sorted by descending Recall@1.

        Classes with fewer than two images come last, with a share of None. Each row names the class that is most
        frequent among the wrong nearest neighbours of its images.
        """
        size = len(self.names)
        images = np.bincount(self.labels, minlength=size)
        right = np.bincount(self.labels[self.hits[:, 0]], minlength=size)
        wrong = self.counted & ~self.hits[:, 0]
        keys, counts = np.unique(self.labels[wrong] * size + self.labels[self.indexes[wrong, 0]], return_counts=True)
        taken: dict[int, tuple[int, int]] = {}
        for key, times in zip(keys.tolist(), counts.tolist(), strict=True):
            label, other = divmod(key, size)
            if times > taken.get(label, (0, 0))[1]:
                taken[label] = other, times
        rows = []
        for label, name in enumerate(self.names):
            share = float(right[label] / images[label]) if images[label] > 1 else None
            other, times = taken.get(label, (None, 0))
            name_taken = None if other is None else self.names[other]
            rows.append((label, ClassRow(name, share, int(images[label]), name_taken, times)))
        return sorted(rows, key=lambda pair: (2.0 if pair[1].share is None else -pair[1].share, -pair[1].images))

    def typical(self, most: int, *, seed: int = 0) -> list[int]:
        """Queries drawn, all equally likely."""
        queries = np.flatnonzero(self.counted)
        return [int(row) for row in np.random.default_rng(seed).permutation(queries)[:most]]

    def best(self, most: int, without: Iterable[int] = ()) -> list[int]:
        """Return the queries with the most correct neighbours, then the highest mean cosine; at most one per class."""
        right = self.hits.sum(1)
        near = np.where(self.hits, self.cosines, 0).sum(1) / np.maximum(right, 1)
        return self._one_of_each_class(np.lexsort((-near, -right)), self.counted & (right > 0), most, without)

    def failing(self, most: int, without: Iterable[int] = ()) -> list[int]:
        """Return queries with a wrong nearest neighbour, at most one per class.

        They are sorted by ascending number of correct neighbours, then by descending cosine of the nearest neighbour.
        """
        order = np.lexsort((-self.cosines[:, 0], self.hits.sum(1)))
        return self._one_of_each_class(order, self.counted & ~self.hits[:, 0], most, without)

    def query(self, row: int) -> ExampleQuery:
        """Return the query of a row with its neighbours."""
        found = zip(self.indexes[row].tolist(), self.cosines[row].tolist(), self.hits[row].tolist(), strict=True)
        neighbours = [Neighbour(self.photo(other), cosine, right) for other, cosine, right in found if other >= 0]
        return ExampleQuery(self.photo(row), neighbours, int(self.hits[row].sum()), min(DEPTH, int(self.relevant[row])))

    def wrong_pairs(self, most: int) -> list[WrongPair]:
        """Return the most similar pairs of an image and its nearest image of another class.

        Each image and each pair of classes occurs at most once.
        """
        found = list(nearest(self.vectors, 1, groups=self.labels))
        others = np.concatenate([some.indexes[:, 0] for some in found])
        cosines = np.concatenate([some.cosines[:, 0] for some in found])
        pairs: list[WrongPair] = []
        images: set[int] = set()
        classes: set[tuple[int, int]] = set()
        for one in np.argsort(-cosines, kind="stable").tolist():
            other = int(others[one])
            first, second = sorted((int(self.labels[one]), int(self.labels[other])))
            if len(pairs) == most or other < 0:
                break
            if {one, other} & images or (first, second) in classes:
                continue
            images |= {one, other}
            classes.add((first, second))
            pairs.append(WrongPair(self.photo(one), self.photo(other), float(cosines[one])))
        return pairs

    def photo(self, row: int) -> Photo:
        """Return the image of a row."""
        return Photo(jpeg_data_uri(self.images[row], IMAGE_SIDE), self.images.shape[1], self.names[self.labels[row]])

    def _one_of_each_class(
        self, order: NDArray[np.int64], allowed: NDArray[np.bool_], most: int, without: Iterable[int]
    ) -> list[int]:
        taken, chosen, classes = set(without), list[int](), set[int]()
        for row in order[allowed[order]].tolist():
            label = int(self.labels[row])
            if len(chosen) < most and row not in taken and label not in classes:
                chosen.append(row)
                classes.add(label)
        return chosen


# Map of the embeddings

FEWEST = 10  # minimum number of points of a map


PERPLEXITY = 30.0


FLAT = 1e-6  # standard deviation below which all vectors count as equal


def chosen(
    labels: NDArray[np.int64], named: Sequence[int], *, most: int, each: int, seed: int = 0
) -> NDArray[np.int64]:
    """Sample the rows shown on the map: rows of the named classes first, then other rows.

    Args:
        labels: (N,) int64.
        named: labels of the classes to include.
        most: maximum number of rows.
        each: maximum number of rows per named class.
        seed: seed of the sampling.

    Returns:
        Row indices in ascending order; all rows if there are at most `most`.
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
    """Project vectors to two dimensions with t-SNE.

    It runs in one thread, so that the same vectors give the same map. Source: van der Maaten, Hinton, 2008,
    "Visualizing data using t-SNE".

    Args:
        vectors: (N, D) float32 of unit length, N up to a few thousand.
        seed: seed of the optimization.

    Returns:
        (N, 2) float64, centred at 0 and scaled so that the largest absolute coordinate is 1; None if there are fewer
        than `FEWEST` vectors, D is 1, or all vectors are equal.

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
