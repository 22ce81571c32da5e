"""A loss by name: the one place where a recipe's words become a module that embeddings are trained with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lookalike.errors import InputError, nearest
from lookalike.losses.cross_batch_memory import CrossBatchMemory
from lookalike.losses.multi_similarity import MultiSimilarityLoss
from lookalike.losses.pml import LibraryLoss
from lookalike.losses.proxy_anchor import ProxyAnchorLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {"multi_similarity": MultiSimilarityLoss, "proxy_anchor": ProxyAnchorLoss}
LIBRARY = "pml/"
GIVEN = ("num_classes", "dim")  # what no option says


def create_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    num_classes: int,
    dim: int,
    miner: str = "",
    miner_options: Mapping[str, Any] | None = None,
    memory: int = 0,
    memory_start: int = 0,
) -> nn.Module:
    """Build a loss on embeddings; its own weights, if it has any, are random.

    Args:
        name: one of `LOSSES`, or "pml/" and the name of a loss of pytorch-metric-learning (needs the `metric-learning`
            extra).
        options: keyword arguments of its constructor.
        num_classes: of the labels, which are 0..num_classes-1.
        dim: D, of the embeddings.
        miner: "pml/" and the name of a miner of that library, for a loss of that library; empty: none.
        miner_options: keyword arguments of its constructor.
        memory: embeddings of past batches to compare with; 0: none.
        memory_start: batches before they are.

    Returns:
        A module from embeddings (B, D) of any float type and labels (B,) int64 to a scalar in float32.

    Raises:
        InputError: no such loss, miner or option (the nearest is named), a value that is refused, or parts that do not
            go together.
    """
    if name.startswith(LIBRARY):
        if miner and not miner.startswith(LIBRARY):
            raise InputError(f"loss.miner: no miner named '{miner}'.", f"Miners are called {LIBRARY}NAME.")
        loss: nn.Module = LibraryLoss(
            name.removeprefix(LIBRARY),
            options,
            miner.removeprefix(LIBRARY),
            miner_options,
            num_classes=num_classes,
            dim=dim,
        )
    else:
        loss = _own(name, dict(options or {}), {"num_classes": num_classes, "dim": dim})
        if miner or miner_options:
            raise InputError(f"loss.miner: '{name}' takes none.", f"Leave it out, or use a loss {LIBRARY}NAME.")
    if memory:
        return CrossBatchMemory(loss, memory, dim, memory_start)
    if memory_start:
        raise InputError(f"memory_start={memory_start}: there is no memory.", "Set loss.memory, or leave it out.")
    return loss


def _own(name: str, options: dict[str, Any], given: dict[str, int]) -> nn.Module:
    if name not in LOSSES:
        raise InputError(
            f"loss.name: no loss named '{name}'.{nearest(name, LOSSES)}",
            f"There are {', '.join(LOSSES)}; or {LIBRARY}NAME for any loss of pytorch-metric-learning.",
        )
    known = options_of(name)
    for key in options:
        if key not in known:
            raise InputError(
                f"loss.options: '{name}' has no option '{key}'.{nearest(key, known)}",
                f"It has {', '.join(known)}. To drop what the recipe has, write loss={{name: {name}}}.",
            )
    taken = inspect.signature(LOSSES[name]).parameters
    try:
        return LOSSES[name](**options, **{key: value for key, value in given.items() if key in taken})
    except (ValueError, TypeError, RuntimeError) as error:
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise InputError(f"loss.options: '{name}' refuses {words} ({error}).", "Mend that value.") from None


def options_of(name: str) -> dict[str, Any]:
    """The options of one of `LOSSES` with their defaults."""
    parameters = inspect.signature(LOSSES[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in GIVEN}
