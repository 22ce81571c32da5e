"""What a run learns and how it is measured on the way: classes, or embeddings that find classes never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.data.loader import seeded
from lookalike.data.pack import Pack
from lookalike.errors import TrainingError
from lookalike.evaluation.classification import negative_log_likelihood, top_k_accuracy
from lookalike.evaluation.evaluate import outputs_of
from lookalike.evaluation.retrieval import KS, per_query
from lookalike.losses.registry import create_loss
from lookalike.models.inference import View
from lookalike.models.init_backbone import Start, start_from, timm_start
from lookalike.models.registry import create_model
from lookalike.recipe import Recipe
from lookalike.training.distributed import DistributedContext, all_gather

WEIGHTS = 3  # purpose of a random stream, beside those of `data.loader`


class ClassificationObjective(nn.Module):
    """Cross entropy of logits (B, C) with labels (B,) or shares of classes (B, C), in float32."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class SimilarityObjective(nn.Module):
    """A loss on the embeddings of the whole batch, whatever the number of processes that share it.

    Args:
        loss: (B, D) embeddings and (B,) labels to a number; it may have weights and a memory.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        whole, of_whole = all_gather(embeddings.float()), all_gather(labels)
        return self.loss(whole, of_whole)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Objective:
    """The network of a recipe and its loss.

    Args:
        network: on the CPU, with the weights that it starts with.
        loss: what is minimised, called with the network's outputs and the batch's targets.
        score: the number by which evaluations are compared: "top1" or "recall_at_1".
        start: what the weights came from; None where they are random, or will come from a checkpoint.
    """

    network: nn.Module
    loss: nn.Module
    score: str
    start: Start | None


def create_objective(recipe: Recipe, num_classes: int, *, resumed: bool = False) -> Objective:
    """Build network and loss with the random weights of the recipe's seed; PyTorch's own generator is left as it was.

    Args:
        recipe: of the run.
        num_classes: that are trained on.
        resumed: all weights will be those of a checkpoint: `model.init` is not read.

    Raises:
        InputError: a network, loss or start that cannot be.
    """
    head = recipe.model.head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(recipe.training.seed, WEIGHTS))
        network = create_model(recipe.model.name, num_classes, recipe.model.options, head)
        loss: nn.Module = ClassificationObjective(recipe.training.label_smoothing)
        if head:
            settings = recipe.loss
            loss = SimilarityObjective(
                create_loss(
                    settings.name,
                    settings.options,
                    num_classes=num_classes,
                    dim=head.dim,
                    miner=settings.miner,
                    miner_options=settings.miner_options,
                    memory=settings.memory,
                    memory_start=settings.memory_start,
                )
            )
    start = timm_start(recipe.model)
    if recipe.model.init and not resumed:
        start = start_from(network, recipe.model)
    return Objective(network, loss, "recall_at_1" if recipe.data.protocol else "top1", start)


def evaluate(
    network: nn.Module, validation: Pack, recipe: Recipe, world: DistributedContext, step: int
) -> dict[str, float]:
    """Measure the network on the validation pack after step `step`, in the run's precision.

    Without a protocol: top-1, top-5 and negative log-likelihood. With one: recall at 1, 2, 4 and 8 of the embeddings,
    or, of a classifier, of its features and of its softmax outputs (by the brief's threshold too). The images are
    shared among the processes; all of them get the result.

    Raises:
        TrainingError: outputs that are not finite.
    """
    labels = validation.labels
    if not recipe.data.protocol:
        logits = _shared(network, validation, "outputs", recipe, world, step)
        top = top_k_accuracy(logits, labels, (1, 5))
        return {"top1": top[1], "top5": top[5], "nll": negative_log_likelihood(logits, labels)}
    view: View = "outputs" if recipe.model.head else "features"
    found = per_query(_shared(network, validation, view, recipe, world, step), labels, KS, at_r=False)
    scores = {f"recall_at_{k}": found.mean(f"recall_at_{k}") for k in KS}
    if not recipe.model.head:
        found = per_query(_shared(network, validation, "softmax", recipe, world, step), labels, KS, at_r=False)
        for name in ("recall_at", "threshold_recall_at"):
            scores |= {f"softmax_{name}_{k}": found.mean(f"{name}_{k}") for k in KS}
    return scores


def _shared(
    network: nn.Module, validation: Pack, view: View, recipe: Recipe, world: DistributedContext, step: int
) -> NDArray[np.float32]:
    """`outputs_of` all validation images, each process doing its share."""
    outputs = outputs_of(
        network,
        validation.images[world.rank :: world.size],
        view=view,
        mean=recipe.data.mean,
        std=recipe.data.std,
        batch_size=recipe.evaluation.batch_size,
        precision=recipe.training.precision,
    )
    outputs = world.gather_rows(outputs, len(validation.images))
    if not np.isfinite(outputs).all():
        raise not_finite("outputs", step)
    return outputs


def not_finite(what: str, step: int) -> TrainingError:
    """The error of a run that has diverged."""
    verb = "is" if what == "loss" else "are"
    return TrainingError(
        f"the {what} {verb} not finite at step {step}; the last good checkpoint is kept.",
        "Lower optimizer.lr, or clip the gradients with optimizer.clip_norm=1, under another --name.",
    )
