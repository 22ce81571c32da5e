"""The training loop, from a recipe and packed images to trained weights. Read it top to bottom.

Nothing in it depends on what was drawn before: the batch, its augmentation, dropout and the learning rate are functions
of the recipe and the number of the step. So a checkpoint is weights, optimiser and a step, and a run that was stopped
at any moment ends with the same weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lookalike.data.loader import Loader, seeded
from lookalike.data.pack import Pack
from lookalike.data.sampler import BatchSampler, PKSampler, ShuffledSampler
from lookalike.errors import InputError
from lookalike.models.registry import check_size
from lookalike.recipe import Recipe, Training
from lookalike.run import Run
from lookalike.training import checkpoint, optim
from lookalike.training.checkpoint import State
from lookalike.training.distributed import DistributedContext
from lookalike.training.malloc import keep_freed_memory
from lookalike.training.metric_logger import MetricLogger
from lookalike.training.objective import create_objective, evaluate, not_finite
from lookalike.training.signals import SignalHandler, leave

STEP, LOSS = 4, 7  # purposes of random streams, beside those of `data.loader`, `data.sampler` and `task`
RECORDS = 400  # training records in a whole run

Watch = Callable[[dict[str, Any], int], None]


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Args:
        network: the final weights (averaged ones where the recipe says so; the best where it stopped early), in
            evaluation mode, on the CPU.
        state: steps, best result, time, and what the first weights came from.
    """

    network: nn.Module
    state: State


def train(
    run: Run, world: DistributedContext, training: Pack, validation: Pack, *, watch: Watch | None = None
) -> Trained:
    """Train the run's recipe from its last checkpoint, or from the start when it has none.

    Args:
        run: its folder; metrics and checkpoints are written there by the leading process.
        world: the processes that share this run.
        training: images to learn from.
        validation: images to evaluate on along the way.
        watch: called with each record and the number of steps in all; at a signal last with {"kind": "stopped",
            "step": ...}, which is in no metrics.

    Raises:
        InputError: a network, loss or batches that cannot be, or a checkpoint that is not this run's.
        TrainingError: the loss or the weights are no longer finite; the last good checkpoint stays.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint.
    """
    recipe, settings, device = run.recipe, run.recipe.training, world.device
    parts = world.size * settings.grad_accum_steps
    if settings.batch_size % parts:
        raise InputError(
            f"training.batch_size={settings.batch_size} cannot be shared by {world.size} processes and "
            f"{settings.grad_accum_steps} accumulated batches.",
            f"Use a multiple of {parts}.",
        )
    if len(validation.images) < world.size:
        raise InputError(
            f"{len(validation.images)} validation images cannot be shared by {world.size} processes.",
            "Start fewer processes, or measure on more images.",
        )
    num_classes = len(training.catalog.class_names)
    loader = Loader(
        training.images,
        training.labels,
        num_classes,
        batch_size=settings.batch_size,
        settings=recipe.data.augment,
        mean=recipe.data.mean,
        std=recipe.data.std,
        seed=settings.seed,
        device=device,
        sampler=make_sampler(recipe, training.labels),
    )
    total = count_steps(settings, len(loader))
    every = max(1, total // RECORDS)

    task = create_objective(recipe, num_classes, resumed=checkpoint.exists(run.checkpoint_dir))
    network, loss_of = task.network.to(device), task.loss.to(device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for size in sorted(
        {resolution(settings, step / total, training.size) for step in range(total)} | {validation.size}
    ):
        check_size(network, size, recipe.model.name)
    network.train()
    optimizer = optim.make_optimizer(network, loss_of, recipe.optimizer)
    average = optim.ModelEma(network, settings.ema_decay) if settings.ema_decay else None
    data = content_of(training, validation)
    former = stamps_of(training, validation)
    state = checkpoint.load_last(run.checkpoint_dir, network, loss_of, optimizer, average, data, former) or State(
        start=asdict(task.start) if task.start else None
    )
    measured = average.network if average else network

    model: nn.Module = network
    if world.size > 1:
        # a timm backbone keeps what stood between its last feature map and its classifier; a head does without
        some_unused = recipe.model.head is not None and recipe.model.name.startswith("timm/")
        ids = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(network, device_ids=ids, find_unused_parameters=some_unused)
    if settings.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    # a loss is read at every step where that costs nothing; a GPU would have to be waited for
    read_every = 1 if device.type == "cpu" else min(every, 25)

    clock = Clock(state)
    if world.leads:
        run.truncate(state.step)
    with (
        keep_freed_memory(device),
        SignalHandler() as interrupts,
        MetricLogger(run, world.leads, watch, total, since=state.step) as events,
    ):

        def save() -> None:
            clock.update(state)
            if not all(torch.isfinite(p).all() for p in network.parameters()):
                raise not_finite("weights", state.step)
            if world.leads:
                checkpoint.save_last(run.checkpoint_dir, state, network, loss_of, optimizer, average, data)
            clock.saved()

        losses: list[Tensor] = []
        while state.step < total and not state.stopped_early:
            # one step: set the rate, add up the gradients of the batch's parts, move
            step = state.step
            rate = optim.lr_at(recipe.schedule, recipe.optimizer.lr, step, total)
            optim.set_lr(optimizer, rate, head_only=step < settings.head_warmup * total)
            if settings.freeze_bn:
                optim.freeze_bn(network)
            torch.manual_seed(seeded(settings.seed, STEP, step, world.rank))  # of dropout
            size = resolution(settings, step / total, training.size)
            loss = torch.zeros((), device=device)
            for part in range(settings.grad_accum_steps):
                batch = loader.batch(step, size, world.rank * settings.grad_accum_steps + part, parts)
                together = part == settings.grad_accum_steps - 1 or not isinstance(model, DistributedDataParallel)
                with contextlib.nullcontext() if together else model.no_sync():  # type: ignore[operator]
                    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                        outputs = model(batch.images)
                    if world.size > 1 and recipe.model.head:  # what a miner draws must be the same in all processes
                        torch.manual_seed(seeded(settings.seed, LOSS, step))
                    share = loss_of(outputs, batch.targets)
                    (share / settings.grad_accum_steps).backward()
                loss += share.detach() / settings.grad_accum_steps
            if recipe.optimizer.clip_norm:
                weights = [*network.parameters(), *loss_of.parameters()]
                nn.utils.clip_grad_norm_(weights, recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(network, step)
            state.step = step + 1
            losses.append(loss)

            # look at it
            epoch = loader.epoch_of(state.step)
            if state.step % read_every == 0 and not math.isfinite(world.mean(float(loss))):
                raise not_finite("loss", state.step)
            if state.step % every == 0 or state.step == total:
                mean = world.mean(float(torch.stack(losses).mean()))
                speed = len(losses) * settings.batch_size / clock.lap()
                events.train(state.step, epoch, mean, rate, size, speed)
                losses.clear()
            ends_epoch = int(epoch) // settings.evaluate_every > int(loader.epoch_of(step)) // settings.evaluate_every
            if ends_epoch or state.step == total:
                with clock.apart():
                    world.share_statistics(measured)
                    scores = evaluate(measured, validation, recipe, world, state.step)
                    events.evaluate(state.step, epoch, scores)
                    if keep_if_best(state, scores[task.score], settings.patience) and world.leads:
                        checkpoint.save_best(run.checkpoint_dir, measured.state_dict())

            # stop, save, go on
            signal = world.any(interrupts.noted)
            if signal or world.any(clock.is_time_to_save(settings.checkpoint_seconds)) or state.step == total:
                save()
            if signal:
                events.stopped(state.step)
                leave(signal)

        if state.stopped_early:
            save()
        if signal := world.any(interrupts.noted):  # it came while the last checkpoint was written
            events.stopped(state.step)
            leave(signal)
    if state.stopped_early:
        world.wait()
        measured.load_state_dict(checkpoint.load_best(run.checkpoint_dir))
    return Trained(measured.eval().cpu(), replace(state))


def content_of(training: Pack, validation: Pack) -> str:
    """What a run learns from and is measured on, as its checkpoint knows it: the same wherever the files lie."""
    return f"{training.content} {validation.content}"


def stamps_of(training: Pack, validation: Pack) -> str:
    """The same as checkpoints of older versions know it: by the names, sizes and times of the files."""
    return f"{training.catalog.fingerprint} {validation.catalog.fingerprint}"


def make_sampler(recipe: Recipe, labels: NDArray[np.int64]) -> BatchSampler:
    """Shuffled epochs, or batches of P classes with K images each where the recipe asks for them.

    Raises:
        InputError: there are fewer classes than P.
    """
    settings, seed = recipe.data.sampler, recipe.training.seed
    if settings.classes:
        return PKSampler(labels, settings.classes, settings.images, seed)
    return ShuffledSampler(len(labels), recipe.training.batch_size, seed)


def count_steps(settings: Training, images: int) -> int:
    """Steps of a whole run on so many training images."""
    return max(1, round(settings.epochs * images / settings.batch_size))


def resolution(settings: Training, done: float, full: int) -> int:
    """Pixels to train on when a share `done` of the run is over."""
    size = full
    for start, pixels in settings.resolution:
        if done >= start:
            size = pixels
    return size


def keep_if_best(state: State, score: float, patience: int) -> bool:
    """Take note of an evaluation: whether it is the best so far, and whether patience (0: endless) has run out."""
    if score > state.best_score:
        state.best_score, state.best_step, state.stale = score, state.step, 0
        return True
    state.stale += 1
    state.stopped_early = bool(patience) and state.stale >= patience
    return False


class Clock:
    """Times the run: wall and processor seconds over all sittings, laps of pure training, and when to save."""

    def __init__(self, state: State) -> None:
        self._wall, self._cpu = state.seconds, state.cpu_seconds
        self._start, self._start_cpu = time.perf_counter(), time.process_time()
        self._lap = self._saved = self._start

    def update(self, state: State) -> None:
        """Write the times so far into the state."""
        state.seconds = self._wall + time.perf_counter() - self._start
        state.cpu_seconds = self._cpu + time.process_time() - self._start_cpu

    def lap(self) -> float:
        """Seconds of training since the last lap, without what was set `apart`."""
        now = time.perf_counter()
        lap, self._lap = now - self._lap, now
        return lap

    @contextlib.contextmanager
    def apart(self) -> Any:
        """What happens inside is not training and does not count for the lap."""
        start = time.perf_counter()
        yield
        self._lap += time.perf_counter() - start

    def is_time_to_save(self, seconds: float) -> bool:
        """Whether the last checkpoint is so old."""
        return time.perf_counter() - self._saved >= seconds

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._saved = time.perf_counter()
