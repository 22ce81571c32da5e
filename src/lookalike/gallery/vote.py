"""The label of an image by a vote among its neighbours in a gallery: no training at all."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from lookalike.errors import InputError
from lookalike.gallery.store.base import AnyValue, Filter, Hit, Store

NEIGHBOURS = 20
TEMPERATURE = 0.07
LABELLED: Filter = {"label": AnyValue.ANY}


class NoLabelsError(InputError):
    """A vote is asked for, and no item of the gallery has a label."""


@dataclass(frozen=True)
class LabelVote:
    """A label, its share of the vote, 0 to 1, and how many of the neighbours have it."""

    label: str
    share: float
    count: int


@dataclass(frozen=True, repr=False)
class Vote(Sequence[LabelVote]):
    """The result of a vote: a sequence of `LabelVote`, the largest share first.

    Args:
        labels: the labels with the largest shares; empty if no neighbour voted. Shares are of all votes.
        neighbours: the labelled items that voted, the most similar first.
    """

    labels: tuple[LabelVote, ...]
    neighbours: tuple[Hit, ...] = ()

    @property
    def unknown(self) -> bool:
        """Whether no neighbour voted: none reached the threshold, or no other file has a label."""
        return not self.labels

    @property
    def label(self) -> str | None:
        """The label with the largest share; None if no neighbour voted."""
        return self.labels[0].label if self.labels else None

    @property
    def share(self) -> float:
        """The largest share; 0 if no neighbour voted."""
        return self.labels[0].share if self.labels else 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> LabelVote: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LabelVote, ...]: ...

    def __getitem__(self, index: int | slice) -> LabelVote | tuple[LabelVote, ...]:
        return self.labels[index]

    def __repr__(self) -> str:
        said = ", ".join(f"{each.label} {each.share:.1%}" for each in self.labels)
        return f"<Vote of {len(self.neighbours)} neighbours: {said or 'unknown'}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(each.label)}</td><td>{each.share:.1%}</td>"
            f"<td style='text-align:left'><meter value='{each.share:.4f}'></meter></td><td>{each.count}</td></tr>"
            for each in self.labels
        )
        caption = f"vote of {len(self.neighbours)} neighbours" if self.labels else "unknown: no neighbour voted"
        return f"<table><caption>{caption}</caption>{rows}</table>"


def vote(neighbours: Sequence[Hit], k: int) -> Vote:
    """Count the votes of labelled items.

    A neighbour with the score s has the weight exp(s / 0.07), as in Wu et al., Unsupervised Feature Learning via
    Non-parametric Instance Discrimination, CVPR 2018: a score that is 0.07 higher counts 2.7 times. The share of a
    label is the sum of its weights divided by the sum of all. Equal shares are ordered by label.

    Args:
        neighbours: items. Those without a label have no vote.
        k: labels in the result.
    """
    voters = [(hit, hit.label) for hit in neighbours if hit.label is not None]
    highest = max((hit.score for hit, _ in voters), default=0.0)
    weights: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for hit, label in voters:
        weights[label] += math.exp((hit.score - highest) / TEMPERATURE)
        counts[label] += 1
    total = sum(weights.values())
    ranked = sorted(weights, key=lambda label: (-weights[label], label))
    labels = tuple(LabelVote(label, weights[label] / total, counts[label]) for label in ranked[:k])
    return Vote(labels, tuple(hit for hit, _ in voters))


def labelled_only(store: Store, location: str) -> Filter | None:
    """A filter that lets labelled items through; None if all items are labelled.

    Raises:
        NoLabelsError: no item has a label.
    """
    if not store.count(LABELLED):
        raise NoLabelsError(
            f"{location}: none of its {len(store):,} items has a label, so there is nothing to vote for.",
            "Add images in folders named like their classes, or label items: lookalike gallery update --label",
        )
    return LABELLED if store.count({"label": None}) else None
