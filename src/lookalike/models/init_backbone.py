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
from lookalike.recipe import Model, Recipe


@dataclass(frozen=True)
class Start:
    """The origin of initial weights, for receipts.

    Args:
        model: as it was named in the recipe.
        fingerprint: of the model.
        dataset: what it was trained on, after what it started from itself.
    """

    model: str
    fingerprint: str
    dataset: str


def with_pretrained(recipe: Recipe) -> Recipe:
    """The recipe with `model.init` set for a network of timm whose own weights are wanted, and their preprocessing.

    `model.options.pretrained=true` means timm's weights of that name, and for a network of timm so does the
    `model.init=default` of a recipe. Image size, mean and standard deviation that the recipe leaves open are those of
    the weights.

    Raises:
        InputError: there are no such weights, or they cannot be downloaded.
    """
    model = recipe.model
    if not model.name.startswith(TIMM):
        return recipe
    options = dict(model.options)
    pretrained = options.pop("pretrained", False)
    init = "" if model.init == serialization.DEFAULT else model.init
    if not init and (pretrained or model.init):
        init = model.name
    changes = {"init": init} if options == model.options else {"init": init, "options": options}
    recipe = recipe.model_copy(update={"model": model.model_copy(update=changes)})
    if not init or recipe.training.adapt:  # which takes all that is left open from `model.init`
        return recipe
    config, _ = serialization.read_config(ModelConfig, locate.find(init)[0])
    given = recipe.data.model_fields_set
    values = {key: getattr(config, key) for key in ("image_size", "mean", "std") if key not in given}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=values)})


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
    config = trained.config
    before = f"{config.start}, then " if config.start else ""
    origin = f" ({config.source}; licence: {config.license or 'not known'})" if config.source else ""
    return Start(model.init, fingerprint, f"{before}{config.dataset or 'unnamed data'}{origin}")
