"""Optimizer, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.recipe import Optimizer, Schedule


def parameter_groups(network: nn.Module, loss: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Split the trainable parameters into up to four groups for an optimizer; empty groups are left out.

    Backbone and head (with the loss's own parameters) are separate: a group's "scale" multiplies the learning rate, 1
    for the backbone and `head_lr_scale` for the head. Each is split by weight decay: matrices and kernels have it,
    biases, norms and scalars do not, unless `decay_all`.
    """
    head = [*getattr(network, "head", nn.Identity()).parameters(), *loss.parameters()]
    head_ids = {id(p) for p in head}
    parameters = [p for p in [*network.parameters(), *loss.parameters()] if p.requires_grad]
    groups = []
    for is_head, decays in itertools.product((False, True), (True, False)):
        chosen = [
            p for p in parameters if is_head == (id(p) in head_ids) and decays == (p.ndim >= 2 or settings.decay_all)
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
    """SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter, arXiv:1711.05101), in the foreach implementation."""
    groups = parameter_groups(network, loss, settings)
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, foreach=True)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, foreach=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, head_only: bool) -> None:
    """Set the learning rate of a step; with `head_only` the backbone is not updated."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if head_only and not group["is_head"] else lr * group["scale"]


def freeze_bn(network: nn.Module) -> None:
    """Put the batch norms into evaluation mode, so that they use and keep their running statistics."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def lr_at(settings: Schedule, peak: float, step: int, total: int) -> float:
    """Learning rate of step `step` (from 0) of `total`.

    It rises linearly from `start` * peak during the first `warmup` fraction of the steps, then falls to `end` * peak at
    the last step: linearly ("one_cycle", Smith & Topin, arXiv:1708.07120) or along half a cosine wave ("cosine",
    Loshchilov & Hutter, arXiv:1608.03983); "constant" stays at the peak.
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
    """Exponential moving average of a network's weights and buffers.

    average += (1 - d) (network - average) after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps, so
    that the random start is soon forgotten (as in TensorFlow's ExponentialMovingAverage). Integer buffers are copied.

    Args:
        network: the network to average.
        decay: limit of d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after step `step` (from 0)."""
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
