"""A classifier's last layer fitted to the frozen features of its network: the start of a fine-tuning.

The features are then not distorted by the gradients of a random classifier (Kumar et al., 2022, "Fine-tuning can
distort pretrained features and underperform out-of-distribution", https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.data.catalog import Catalog
from lookalike.data.copies import same_bytes
from lookalike.data.pack import Pack
from lookalike.errors import InputError
from lookalike.evaluation.evaluate import outputs_of
from lookalike.recipe import Recipe
from lookalike.training.probe import Probe, fit_probe, kind_for

BATCH_SIZE = 64


def fit_head(network: nn.Module, training: Pack, recipe: Recipe) -> None:
    """Fit the last layer to the images and their mirror images; the rest of the network is not changed.

    Raises:
        InputError: the network has no `model.unit_features`, or a class has fewer than two different images.
    """
    if not recipe.model.unit_features:
        raise InputError("training.fit_head needs model.unit_features=true.", "Set both, or neither.")
    labels, groups = training.labels, groups_of_copies(training)
    check_counts(training.catalog, groups)
    views = [
        outputs_of(
            network, images, view="classifier", mean=recipe.data.mean, std=recipe.data.std, batch_size=BATCH_SIZE
        )
        for images in (training.images, *([training.images[:, :, ::-1]] if recipe.data.augment.flip else []))
    ]
    classes = len(training.catalog.class_names)
    set_classifier(
        network, fit_probe(views, labels, classes, kind=kind_for(labels), groups=groups, seed=recipe.training.seed)
    )


def set_classifier(network: nn.Module, probe: Probe) -> None:
    """Write the weights of a probe into the last layer of a network with `unit_features`."""
    head = network.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))


def groups_of_copies(training: Pack) -> NDArray[np.int64]:
    """A number for each image of a pack, (N,); equal for images whose files have the same bytes."""
    groups = np.arange(len(training.images))
    for rows in same_bytes(training.catalog.root, training.catalog.container, training.catalog.paths):
        groups[rows] = rows[0]
    return groups


def check_counts(catalog: Catalog, groups: NDArray[np.int64]) -> None:
    """Check that every class of the images fitted to has two that are no copies, so that each can be held out.

    Raises:
        InputError: a class has fewer; it is named.
    """
    for label, name in enumerate(catalog.class_names):
        own = groups[catalog.labels == label]
        if len(np.unique(own)) < 2:
            what = "one image" if len(own) == 1 else f"{len(own)} copies of one image" if len(own) else "no images left"
            raise InputError(
                f"{catalog.root}: class '{name}' has {what} to learn from.",
                "Add another image of it, or leave the class out: without a second one, nothing can tell whether the "
                "class is recognised.",
            )
