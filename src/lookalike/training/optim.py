"""Optimiser groups, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.recipe import Optimizer, Schedule


def parameter_groups(network: nn.Module, loss: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups of parameters: of the backbone and of the head, to which the loss's own weights count; of each with weight
    decay (matrices and kernels) and without (biases, norms, single numbers; none with `decay_all`). Empty ones are left
    out. A group's "scale" is its learning rate over the recipe's: 1, and `head_lr_scale` for the head.
    """
    own = [*getattr(network, "head", nn.Identity()).parameters(), *loss.parameters()]
    of_head = {id(p) for p in own}
    parameters = [p for p in [*network.parameters(), *loss.parameters()] if p.requires_grad]
    groups = []
    for is_head, decays in itertools.product((False, True), (True, False)):
        chosen = [
            p for p in parameters if is_head == (id(p) in of_head) and decays == (p.ndim >= 2 or settings.decay_all)
        ]
        groups.append(
            {
                "params": chosen,
                "weight_decay": settings.weight_decay if decays else 0.0,
                "scale": settings.head_lr_scale if is_head else 1.0,
                "is_head": is_head,
            }
        )
    return [group for group in groups if group["params"]]


def make_optimizer(network: nn.Module, loss: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter, arXiv:1711.05101), all parameters at once."""
    groups = parameter_groups(network, loss, settings)
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, foreach=True)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, foreach=True)


def set_lr(optimizer: torch.optim.Optimizer, rate: float, *, head_only: bool) -> None:
    """Set the learning rate of a step; with `head_only` the backbone stands still."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if head_only and not group["is_head"] else rate * group["scale"]


def freeze_bn(network: nn.Module) -> None:
    """Let batch norms use the statistics they have, as in evaluation, until the network is put into training again."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def lr_at(settings: Schedule, peak: float, step: int, total: int) -> float:
    """The learning rate of step `step` (from 0) of `total`.

    It rises linearly from `start` x peak over the first `warmup` share of the steps, then falls to `end` x peak at the
    last step: linearly ("one_cycle", as Smith & Topin, arXiv:1708.07120), along half a cosine wave ("cosine",
    Loshchilov & Hutter, arXiv:1608.03983), or stays ("constant").
    """
    last = total - 1
    warm = settings.warmup * last
    if step < warm:
        return peak * (settings.start + (1 - settings.start) * step / warm)
    if settings.name == "constant":
        return peak
    done = (step - warm) / (last - warm) if last > warm else 0.0
    left = 1 - done if settings.name == "one_cycle" else (1 + math.cos(math.pi * done)) / 2
    return peak * (settings.end + (1 - settings.end) * left)


class ModelEma:
    """An exponential moving average of a network's weights and statistics.

    average += (1 - d) (network - average) after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps, so
    that the random start is forgotten soon (as TensorFlow's ExponentialMovingAverage does). Counters are copied.

    Args:
        network: what is averaged.
        decay: d in the long run.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step number `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        new = network.state_dict()
        own: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                own.append(tensor)
                theirs.append(new[name])
            else:
                tensor.copy_(new[name])
        torch._foreach_lerp_(own, theirs, weight)
