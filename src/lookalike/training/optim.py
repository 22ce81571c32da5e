"""Optimiser groups, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from lookalike.recipe import Optimizer, Schedule


def parameter_groups(network: nn.Module, settings: Optimizer) -> list[dict[str, object]]:
    """Two groups of parameters: with weight decay (matrices and kernels) and without (biases, norms, single numbers).

    With `decay_all`, everything is in the first.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 or settings.decay_all]
    plain = [p for p in parameters if p.ndim < 2 and not settings.decay_all]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return groups


def make_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter, arXiv:1711.05101), all parameters at once."""
    groups = parameter_groups(network, settings)
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, foreach=True)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, foreach=True)


def learning_rate(settings: Schedule, peak: float, step: int, total: int) -> float:
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


class Average:
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
