"""Initialise the backbone of a network with the weights of a trained model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lookalike.errors import InputError
from lookalike.models import locate, serialization
from lookalike.models.heads import EmbeddingNetwork, drop_classifier
from lookalike.models.pretrained import ImageModel
from lookalike.models.serialization import TIMM, ModelConfig
from lookalike.recipe import Model


@dataclass(frozen=True)
class Start:
    """The origin of initial weights, for receipts.

    Args:
        model: as it was named in the recipe.
        fingerprint: of the model; empty for weights of timm.
        dataset: what it was trained on, after what it started from itself.
    """

    model: str
    fingerprint: str
    dataset: str


def timm_start(model: Model) -> Start | None:
    """The start of a timm network with weights of timm; None for any other network."""
    if model.name.startswith(TIMM) and model.options.get("pretrained"):
        return Start(model.name, "", "timm's own weights")
    return None


def fingerprint_of(model: Model) -> str:
    """The fingerprint of the model that `model.init` names.

    Raises:
        InputError: there is no such model.
    """
    return ImageModel.from_pretrained(model.init).fingerprint


def check_blind(model: Model, ids: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a start that was trained on test classes of a zero-shot protocol.

    Args:
        model: with `init`, a model folder or Hub id.
        ids: of the test classes in the data set.
        names: of the test classes, in the same order.

    Raises:
        InputError: the model was trained on one of them.
    """
    config, _ = serialization.read_config(ModelConfig, locate.find(model.init)[0])
    if both := config.classes_in(ids, names):
        raise InputError(
            f"model.init: {model.init} was trained on {len(both)} of the test classes, such as '{both[0]}'.",
            "Recall on them would not be of classes never seen: start from another model, or from random weights.",
        )


def start_from(network: nn.Module, model: Model) -> Start:
    """Copy the backbone of `model.init` into a network of the same architecture.

    Args:
        network: made by `create_model`; its classifier or embedding head keeps its weights.
        model: with `init`, a model folder or Hub id.

    Raises:
        InputError: no such model, or one of another architecture.
    """
    trained = ImageModel.from_pretrained(model.init)
    fingerprint, there = trained.fingerprint, trained.network
    theirs = there.backbone if isinstance(there, EmbeddingNetwork) else there
    ours = network.backbone if isinstance(network, EmbeddingNetwork) else network
    if trained.config.name != model.name:
        raise InputError(
            f"model.init: {model.init} is a {trained.config.name}, not a {model.name}.",
            f"Start from another model, or train with model.name={trained.config.name}.",
        )
    if not isinstance(there, EmbeddingNetwork):
        drop_classifier(theirs)
    bare = copy.deepcopy(ours)
    if not isinstance(network, EmbeddingNetwork):
        drop_classifier(bare)
    try:
        serialization.fill(bare, theirs.state_dict(), locate.find(model.init)[1])
    except InputError as error:
        options = ", ".join(f"{key}={value}" for key, value in trained.config.options.items())
        raise InputError(f"model.init: {error.message}", f"Its model.options are {{{options}}}.") from None
    ours.load_state_dict(bare.state_dict(), strict=False)
    before = f"{trained.config.start}, then " if trained.config.start else ""
    return Start(model.init, fingerprint, f"{before}{trained.config.dataset or 'unnamed data'}")
