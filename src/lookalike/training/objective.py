"""Network and loss of a recipe (a classifier, or embeddings), and the evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
from lookalike.models.init_backbone import Start, start_from
from lookalike.models.registry import create_model
from lookalike.recipe import Recipe
from lookalike.training.distributed import DistributedContext, all_gather

WEIGHTS = 3  # random stream; others are in `data.loader` and `loop`


class ClassificationObjective(nn.Module):
    """Cross entropy of logits (B, C) with labels (B,) or class probabilities (B, C), in float32."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class SimilarityObjective(nn.Module):
    """A loss on the embeddings of the whole batch, gathered from all processes.

    Args:
        loss: takes embeddings (B, D) and labels (B,), returns a scalar; may have parameters and a memory.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(all_gather(embeddings.float()), all_gather(labels))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Objective:
    """The network of a recipe and its loss.

    Args:
        network: on the CPU, with its initial weights.
        loss: takes the network's outputs and the targets of the batch.
        score: the score that decides which evaluation is the best: "top1" or "recall_at_1".
        start: source of the initial weights; None if they are random or come from a checkpoint.
    """

    network: nn.Module
    loss: nn.Module
    score: str
    start: Start | None


def create_objective(recipe: Recipe, num_classes: int, *, resumed: bool = False) -> Objective:
    """Build network and loss with weights drawn by the recipe's seed; PyTorch's global generator is not changed.

    Args:
        recipe: the recipe of the run.
        num_classes: number of training classes.
        resumed: the weights will come from a checkpoint, so `model.init` is not read.

    Raises:
        InputError: an unknown network or loss, bad options, or a `model.init` that does not fit.
    """
    head = recipe.model.head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(recipe.training.seed, WEIGHTS))
        network = create_model(
            recipe.model.name, num_classes, recipe.model.options, head, unit_features=recipe.model.unit_features
        )
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
    start = start_from(network, recipe.model) if recipe.model.init and not resumed else None
    return Objective(network, loss, "recall_at_1" if recipe.data.protocol else "top1", start)


def evaluate(
    network: nn.Module, validation: Pack, recipe: Recipe, context: DistributedContext, step: int, precision: str
) -> dict[str, float]:
    """Measure the network on the validation images after `step` steps, in the precision "bf16" or "float32".

    Without a protocol: top-1 and top-5 accuracy and negative log-likelihood. With one: recall at 1, 2, 4 and 8 of the
    embeddings; for a classifier, of its pooled features and of its softmax outputs, these also with the threshold of
    `evaluation.retrieval`. The processes share the images, and all get the scores.

    Raises:
        TrainingError: the outputs are not finite.
    """
    labels = validation.labels
    outputs = partial(_gathered_outputs, network, validation, recipe, context, step, precision)
    if not recipe.data.protocol:
        logits = outputs("outputs")
        top = top_k_accuracy(logits, labels, (1, 5))
        return {"top1": top[1], "top5": top[5], "nll": negative_log_likelihood(logits, labels)}
    view: View = "outputs" if recipe.model.head else "features"
    found = per_query(outputs(view), labels, KS, at_r=False)
    scores = {f"recall_at_{k}": found.mean(f"recall_at_{k}") for k in KS}
    if not recipe.model.head:
        found = per_query(outputs("softmax"), labels, KS, at_r=False)
        for name in ("recall_at", "threshold_recall_at"):
            scores |= {f"softmax_{name}_{k}": found.mean(f"{name}_{k}") for k in KS}
    return scores


def _gathered_outputs(
    network: nn.Module,
    validation: Pack,
    recipe: Recipe,
    context: DistributedContext,
    step: int,
    precision: str,
    view: View,
) -> NDArray[np.float32]:
    """`outputs_of` for all validation images, computed by all processes together."""
    outputs = outputs_of(
        network,
        validation.images[context.rank :: context.world_size],
        view=view,
        mean=recipe.data.mean,
        std=recipe.data.std,
        batch_size=recipe.evaluation.batch_size,
        precision=precision,
    )
    outputs = context.gather_rows(outputs, len(validation.images))
    if not np.isfinite(outputs).all():
        raise not_finite("outputs", step)
    return outputs


def not_finite(what: str, step: int) -> TrainingError:
    """Error of a diverged run."""
    verb = "is" if what == "loss" else "are"
    return TrainingError(
        f"the {what} {verb} not finite at step {step}; the last good checkpoint is kept.",
        "Lower optimizer.lr, or clip gradients with optimizer.clip_norm=1, and train into another --out.",
    )
