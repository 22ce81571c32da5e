"""What a classifier says of an image: softmax with temperature, the k most probable classes, and "unknown"."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from lookalike.image.encoding import jpeg_data_uri


@dataclass(frozen=True)
class ClassProbability:
    """A class (its name, its id in the data set, its index in the model) and its probability, 0 to 1."""

    label: str
    class_id: str
    index: int
    probability: float


@dataclass(frozen=True, repr=False)
class Prediction(Sequence[ClassProbability]):
    """The most probable classes of one image, in descending order; a sequence of `ClassProbability`.

    Args:
        classes: at least one. Probabilities are over all classes of the model.
        unknown: whether the first probability is below the model's `unknown_threshold`.
        image: what the network saw, (size, size, 3) uint8, for display in a notebook; None if it was not kept.
    """

    classes: tuple[ClassProbability, ...]
    unknown: bool = False
    image: NDArray[np.uint8] | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The name of the most probable class."""
        return self.classes[0].label

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.classes[0].probability

    def __len__(self) -> int:
        return len(self.classes)

    @overload
    def __getitem__(self, index: int) -> ClassProbability: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ClassProbability, ...]: ...

    def __getitem__(self, index: int | slice) -> ClassProbability | tuple[ClassProbability, ...]:
        return self.classes[index]

    def __repr__(self) -> str:
        said = ", ".join(f"{each.label} {each.probability:.1%}" for each in self.classes)
        return f"<Prediction: {'unknown; ' if self.unknown else ''}{said}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(each.label)}</td><td>{each.probability:.1%}</td>"
            f"<td style='text-align:left'><meter value='{each.probability:.4f}'></meter></td></tr>"
            for each in self.classes
        )
        picture = "" if self.image is None else f"<img src='{jpeg_data_uri(self.image)}' style='min-width:96px' alt=''>"
        unknown = "<caption>unknown: at most it may be</caption>" if self.unknown else ""
        return f"<div style='display:flex;gap:1em;align-items:center'>{picture}<table>{unknown}{rows}</table></div>"


class ClassInfo(Protocol):
    """What must be known about a model to turn its logits into predictions; a `ModelConfig` and a `Runtime` know it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class."""
        ...

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The id of each class in its data set."""
        ...

    @property
    def temperature(self) -> float:
        """Divides the logits before the softmax."""
        ...

    @property
    def unknown_threshold(self) -> float | None:
        """The largest probability below which an image is called unknown; None: never."""
        ...


@dataclass(frozen=True)
class LabelInfo:
    """A `ClassInfo` of labels that are given with the images."""

    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    temperature: float
    unknown_threshold: float | None = None


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of the classes, (N, C), from logits (N, C) divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def predictions_of(logits: NDArray[np.float32], classes: ClassInfo, k: int = 5) -> list[Prediction]:
    """The k most probable classes of each image (all classes if there are fewer), and whether to call it unknown.

    Args:
        logits: (N, C) float32.
        classes: names, ids, temperature and threshold of the model.
        k: at least 1.

    Returns:
        N predictions. Of equally probable classes the one with the smaller index comes first.
    """
    probabilities = softmax(logits, classes.temperature)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    names, ids, threshold = classes.class_names, classes.class_ids, classes.unknown_threshold
    predictions = []
    for indices, row in zip(order.tolist(), np.take_along_axis(probabilities, order, 1).tolist(), strict=True):
        top = tuple(ClassProbability(names[i], ids[i], i, p) for i, p in zip(indices, row, strict=True))
        predictions.append(Prediction(top, unknown=threshold is not None and row[0] < threshold))
    return predictions
