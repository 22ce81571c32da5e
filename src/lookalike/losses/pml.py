"""Any loss and miner of pytorch-metric-learning (https://github.com/KevinMusgrave/pytorch-metric-learning); an extra.

K. Musgrave, S. Belongie and S. Lim: PyTorch Metric Learning. 2020, https://arxiv.org/abs/2008.09164
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from lookalike.errors import InputError, nearest
from lookalike.extras import missing

# Arguments for the number of classes and the dimension.
NUM_CLASSES, DIM = frozenset({"num_classes"}), frozenset({"embedding_size", "descriptors_dim"})
# Arguments that are objects, which a recipe cannot contain.
OBJECTS = frozenset({"reducer", "weight_init_func", "weight_regularizer", "embedding_regularizer"})
OF_OBJECTS = frozenset({"weight_reg_weight", "embedding_reg_weight", "mat_based_loss", "collect_stats"})
# Wrappers of other losses, losses without labels, and a miner for batches of triplets.
UNSUITABLE = frozenset(
    {"GenericPairLoss", "BatchedDistance", "ManifoldLoss", "VICRegLoss", "EmbeddingsAlreadyPackagedAsTriplets"}
)
MISTAKES = (TypeError, ValueError, KeyError, AttributeError, AssertionError, NotImplementedError)


class LibraryLoss(nn.Module):
    """A loss of the library, with pairs or triplets from one of its miners.

    It is computed in float32. Losses with weights (`ArcFaceLoss`, `ProxyNCALoss`, ...) get the number of classes and
    the dimension. Loss and miner also take `distance`, the name of a distance of the library. Random numbers come from
    PyTorch's global generator.

    Args:
        name: of the loss, such as "TripletMarginLoss".
        options: keyword arguments of its constructor.
        miner: name of a miner, such as "MultiSimilarityMiner"; empty: every pair or triplet.
        miner_options: keyword arguments of its constructor.
        num_classes: of the labels, which are 0..num_classes-1.
        dim: D, of the embeddings.

    Raises:
        InputError: the library is not installed; it has no such loss, miner or option (the error names the nearest); it
            refuses a value, or the loss takes no miner.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        miner: str = "",
        miner_options: Mapping[str, Any] | None = None,
        *,
        num_classes: int,
        dim: int,
    ) -> None:
        super().__init__()
        try:
            from pytorch_metric_learning import distances, losses, miners
        except ImportError as error:
            said = f"pml/{name}: pytorch-metric-learning cannot be imported ({error})."
            raise missing(said, "metric-learning") from None
        if miner_options and not miner:
            raise InputError("loss.miner_options: there is no miner.", "Name one in loss.miner, such as pml/HDCMiner.")
        self.name = f"pml/{name}"
        given = dict.fromkeys(NUM_CLASSES, num_classes) | dict.fromkeys(DIM, dim)
        of_loss = classes(losses, losses.BaseMetricLossFunction)
        of_miner = classes(miners, miners.BaseMiner)
        metrics = classes(distances, distances.BaseDistance)
        self.loss = _make("loss", name, of_loss, options or {}, metrics, given)
        self.miner = _make("miner", miner, of_miner, miner_options or {}, metrics, {}) if miner else None
        self.takes_reference: bool = name in losses.CrossBatchMemory.supported_losses()
        self._try(num_classes, dim)

    def _try(self, num_classes: int, dim: int) -> None:
        """Compute the loss once: the library accepts values that fail only then."""
        labels = torch.arange(min(num_classes, 8)).repeat_interleave(4)
        embeddings = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=[]):
            try:
                with contextlib.suppress(RuntimeError):  # a number may fit the real batch and not this one
                    copy.deepcopy(self)(embeddings, labels)
            except MISTAKES as error:
                with_miner = f" with {type(self.miner).__name__}" if self.miner else ""
                raise InputError(
                    f"{self.name}{with_miner} cannot be computed ({_line(error)}).",
                    "Mend loss.options or loss.miner_options, or leave the miner out.",
                ) from None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
        itself: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, D) of any float type, labels (B,) int64 -> scalar float32.

        Pairs are those within the batch or, with `reference` (R, D) and `reference_labels` (R,), of the batch with it;
        `itself` (B,) is then the row of the anchor in the reference; such pairs are removed after mining.
        An embedding that is not finite gives NaN.
        """
        from pytorch_metric_learning.utils import loss_and_miner_utils

        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.float()
            if not torch.isfinite(x).all():  # the library would ignore it or fail
                return (x * torch.nan).sum()
            if reference is None or reference_labels is None:
                mined = self.miner(x, labels) if self.miner else None
                return cast(Tensor, self.loss(x, labels, mined))
            others = reference.float()
            if self.miner:
                mined = self.miner(x, labels, others, reference_labels)
            else:
                mined = loss_and_miner_utils.get_all_pairs_indices(labels, reference_labels)
            if itself is not None:
                anchor, positive, *negatives = mined
                keep = positive != itself[anchor]
                # triplets (anchor, positive, negative) go as one; pairs come with anchors of the negatives
                rest = negatives if len(negatives) == 2 else [negative[keep] for negative in negatives]
                mined = (anchor[keep], positive[keep], *rest)
            return cast(Tensor, self.loss(x, labels, mined, others, reference_labels))


def classes(module: ModuleType, base: type) -> dict[str, type]:
    """The classes of the library of one kind, by name; without their base class and unsuitable ones."""
    found = {name: value for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)}
    return {name: found[name] for name in sorted(found) if found[name] is not base and name not in UNSUITABLE}


def parameters_of(cls: type) -> set[str]:
    """Keyword arguments of a class of the library and its ancestors, to which it passes on the rest."""
    names: set[str] = set()
    for ancestor in cls.__mro__:
        if ancestor.__module__.startswith("pytorch_metric_learning") and "__init__" in vars(ancestor):
            parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
            named = (p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY})
            names.update(named)
    return names - {"self"}


def options_of(cls: type) -> list[str]:
    """The keyword arguments that a recipe can contain."""
    return sorted(parameters_of(cls) - NUM_CLASSES - DIM - OBJECTS - OF_OBJECTS)


def _make(
    kind: str,
    name: str,
    known: Mapping[str, type],
    options: Mapping[str, Any],
    metrics: Mapping[str, type],
    given: Mapping[str, int],
) -> Any:
    """Create a loss or miner. `kind` is its key in the recipe; `given` are arguments that it gets if it has them."""
    where = "loss.name" if kind == "loss" else "loss.miner"
    where_options = "loss.options" if kind == "loss" else "loss.miner_options"
    cls = _one_of(known, name, f"{where}: pytorch-metric-learning has no {kind}")
    takes = options_of(cls)
    for key in options:
        if key not in takes:
            raise InputError(
                f"{where_options}: '{name}' has no option '{key}'.{nearest(key, takes)}",
                f"It has {', '.join(takes) or 'none'}.",
            )
    arguments = dict(options)
    if "distance" in arguments:
        metric = str(arguments["distance"])
        arguments["distance"] = _one_of(metrics, metric, f"{where_options}: pytorch-metric-learning has no distance")()
    parameters = parameters_of(cls)
    arguments |= {key: value for key, value in given.items() if key in parameters}
    try:
        return cls(**arguments)
    except (*MISTAKES, RuntimeError) as error:
        words = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise InputError(f"{where_options}: '{name}' refuses {words} ({_line(error)}).", "Mend that value.") from None


def _one_of(known: Mapping[str, type], name: str, complaint: str) -> type:
    if name not in known:
        raise InputError(f"{complaint} '{name}'.{nearest(name, known)}", f"It has {_list(known)}.")
    return known[name]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
