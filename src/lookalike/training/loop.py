"""The training loop, from a recipe and packed images to trained weights.

The batch, its augmentation, dropout and the learning rate are functions of the recipe and the step number; no random
state is carried from step to step. A checkpoint is therefore weights, optimizer state and a step number, and a run that
was stopped and resumed ends with the same weights as one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

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
from lookalike.training.fit_head import fit_head
from lookalike.training.malloc import keep_freed_memory
from lookalike.training.metric_logger import MetricLogger, OnRecord, Tracker
from lookalike.training.objective import create_objective, evaluate, not_finite
from lookalike.training.precision import choose_precision
from lookalike.training.signals import SignalHandler, exit_by_signal

STEP, LOSS = 4, 7  # random streams; others are in `data.loader`, `data.sampler` and `objective`
TRAIN_RECORDS = 400  # in the metrics of a whole run


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Args:
        network: the final weights (the averaged ones if the recipe averages, the best ones after early stopping), in
            evaluation mode, on the CPU.
        state: steps, best score, times, and the source of the first weights.
    """

    network: nn.Module
    state: State


def train(
    run: Run,
    context: DistributedContext,
    training: Pack,
    validation: Pack,
    *,
    on_record: OnRecord | None = None,
    trackers: Sequence[Tracker] = (),
) -> Trained:
    """Train the run's recipe from its last checkpoint, or from the start if it has none.

    Args:
        run: the folder for metrics and checkpoints, which the main process writes.
        context: the processes that share this run.
        training: images to train on.
        validation: images to evaluate on during training.
        on_record: called with each record and the number of steps of the whole run; when a signal stops training, last
            with {"kind": "stopped", "step": ...}.
        trackers: get the numbers of each record.

    Raises:
        InputError: the recipe does not fit the data or the processes, or the checkpoint belongs to another run.
        TrainingError: the loss or the weights are not finite; the last good checkpoint is kept.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    recipe, settings, device = run.recipe, run.recipe.training, context.device
    parts = context.world_size * settings.grad_accum_steps
    if settings.batch_size % parts:
        raise InputError(
            f"training.batch_size={settings.batch_size} cannot be split over {context.world_size} processes and "
            f"{settings.grad_accum_steps} accumulated batches.",
            f"Use a multiple of {parts}.",
        )
    if len(validation.images) < context.world_size:
        raise InputError(
            f"{len(validation.images)} validation images cannot be split over {context.world_size} processes.",
            "Start fewer processes, or use more validation images.",
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
    every = max(1, total // TRAIN_RECORDS)

    objective = create_objective(recipe, num_classes, resumed=checkpoint.exists(run.checkpoint_dir))
    network, loss_of = objective.network.to(device), objective.loss.to(device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for size in sorted(
        {resolution(settings, step / total, training.size) for step in range(total)} | {validation.size}
    ):
        check_size(network, size, recipe.model.name)
    if settings.fit_head and not checkpoint.exists(run.checkpoint_dir):
        fit_head(network, training, recipe)
    network.train()
    optimizer = optim.make_optimizer(network, loss_of, recipe.optimizer)
    average = optim.ModelEma(network, settings.ema_decay) if settings.ema_decay else None
    data = content_of(training, validation)
    former = stamps_of(training, validation)
    state = checkpoint.load_last(run.checkpoint_dir, network, loss_of, optimizer, average, data, former) or State(
        start=asdict(objective.start) if objective.start else None
    )
    measured = average.network if average else network
    metrics = MetricLogger(run, total, is_main_process=context.is_main_process, on_record=on_record, trackers=trackers)
    if not state.precision:  # a new run; a resumed one keeps its precision
        largest = max([training.size, *(pixels for _, pixels in settings.resolution)])
        probe = choose_precision(settings, network, largest, context)
        state.precision = probe.precision
        metrics.precision(state.step, probe)

    model: nn.Module = network
    if context.world_size > 1:
        # a timm backbone keeps the layers between its last feature map and its classifier, which a head does not use
        some_unused = recipe.model.head is not None and recipe.model.name.startswith("timm/")
        ids = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(network, device_ids=ids, find_unused_parameters=some_unused)
    if settings.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    # reading the loss is free on a CPU; on a GPU it waits for all queued work
    read_every = 1 if device.type == "cpu" else min(every, 25)

    clock = Clock(state)
    is_main = context.is_main_process
    if is_main:
        run.truncate(state.step)
    with (
        keep_freed_memory(device),
        SignalHandler() as signals,
    ):

        def save() -> None:
            clock.update(state)
            if not all(torch.isfinite(p).all() for p in network.parameters()):
                raise not_finite("weights", state.step)
            if context.is_main_process:
                checkpoint.save_last(run.checkpoint_dir, state, network, loss_of, optimizer, average, data)
            clock.saved()

        losses: list[Tensor] = []
        while state.step < total and not state.stopped_early:
            # one step: set the learning rate, accumulate the gradients of the parts of the batch, update
            step = state.step
            lr = optim.lr_at(recipe.schedule, recipe.optimizer.lr, step, total)
            optim.set_lr(optimizer, lr, head_only=step < settings.head_warmup * total)
            if settings.freeze_bn:
                optim.freeze_bn(network)
            torch.manual_seed(seeded(settings.seed, STEP, step, context.rank))  # of dropout
            size = resolution(settings, step / total, training.size)
            loss = torch.zeros((), device=device)
            for part in range(settings.grad_accum_steps):
                batch = loader.batch(step, size, context.rank * settings.grad_accum_steps + part, parts)
                sync_gradients = part == settings.grad_accum_steps - 1 or not isinstance(model, DistributedDataParallel)
                with contextlib.nullcontext() if sync_gradients else model.no_sync():  # type: ignore[operator]
                    with torch.autocast(device.type, torch.bfloat16, enabled=state.precision == "bf16"):
                        outputs = model(batch.images)
                    if context.world_size > 1 and recipe.model.head:  # miners must draw the same in all processes
                        torch.manual_seed(seeded(settings.seed, LOSS, step))
                    part_loss = loss_of(outputs, batch.targets)
                    (part_loss / settings.grad_accum_steps).backward()
                loss += part_loss.detach() / settings.grad_accum_steps
            if recipe.optimizer.clip_norm:
                weights = [*network.parameters(), *loss_of.parameters()]
                nn.utils.clip_grad_norm_(weights, recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(network, step)
            state.step = step + 1
            losses.append(loss)

            # report, and evaluate at the end of an epoch
            epoch = loader.epoch_of(state.step)
            if state.step % read_every == 0 and not math.isfinite(context.mean(float(loss))):
                raise not_finite("loss", state.step)
            if state.step % every == 0 or state.step == total:
                mean = context.mean(float(torch.stack(losses).mean()))
                speed = len(losses) * settings.batch_size / clock.lap()
                metrics.train(state.step, epoch, mean, lr, size, speed)
                losses.clear()
            ends_epoch = int(epoch) // settings.evaluate_every > int(loader.epoch_of(step)) // settings.evaluate_every
            if ends_epoch or state.step == total:
                with clock.paused():
                    context.broadcast_buffers(measured)
                    scores = evaluate(measured, validation, recipe, context, state.step, state.precision)
                    metrics.evaluate(state.step, epoch, scores)
                    if keep_if_best(state, scores[objective.score], settings.patience) and context.is_main_process:
                        checkpoint.save_best(run.checkpoint_dir, measured.state_dict())

            # save, and stop if asked to
            signal = context.max(signals.received)
            if signal or context.max(clock.is_time_to_save(settings.checkpoint_seconds)) or state.step == total:
                save()
            if signal:
                metrics.stopped(state.step)
                exit_by_signal(signal)

        if state.stopped_early:
            save()
        if signal := context.max(signals.received):  # received while the last checkpoint was written
            metrics.stopped(state.step)
            exit_by_signal(signal)
    if state.stopped_early:
        context.barrier()
        measured.load_state_dict(checkpoint.load_best(run.checkpoint_dir))
    return Trained(measured.eval().cpu(), replace(state))


def content_of(training: Pack, validation: Pack) -> str:
    """Identity of the images and labels of a run, stored in its checkpoint; independent of file paths."""
    return f"{training.content} {validation.content}"


def stamps_of(training: Pack, validation: Pack) -> str:
    """The identity of the data in checkpoints of older versions: names, sizes and times of the files."""
    return f"{training.catalog.fingerprint} {validation.catalog.fingerprint}"


def make_sampler(recipe: Recipe, labels: NDArray[np.int64]) -> BatchSampler:
    """Shuffled batches, or batches of P classes with K images each if the recipe asks for them.

    Raises:
        InputError: there are fewer than P classes.
    """
    settings, seed = recipe.data.sampler, recipe.training.seed
    if settings.classes:
        return PKSampler(labels, settings.classes, settings.images, seed)
    return ShuffledSampler(len(labels), recipe.training.batch_size, seed)


def count_steps(settings: Training, images: int) -> int:
    """Optimizer steps of a whole run on this number of training images."""
    return max(1, round(settings.epochs * images / settings.batch_size))


def resolution(settings: Training, done: float, full: int) -> int:
    """Side of the training images in pixels after a fraction `done` of the run.

    >>> resolution(Training(resolution=((0, 32), (0.5, 48))), 0.6, 64)
    48
    """
    size = full
    for start, pixels in settings.resolution:
        if done >= start:
            size = pixels
    return size


def keep_if_best(state: State, score: float, patience: int) -> bool:
    """Record an evaluation in the state; return whether it is the best. `patience` worse ones (0: any number) stop."""
    if score > state.best_score:
        state.best_score, state.best_step, state.stale = score, state.step, 0
        return True
    state.stale += 1
    state.stopped_early = bool(patience) and state.stale >= patience
    return False


class Clock:
    """Times of a run: wall and CPU seconds over all its sessions, laps of training only, and when to save."""

    def __init__(self, state: State) -> None:
        self._wall, self._cpu = state.seconds, state.cpu_seconds
        self._start, self._start_cpu = time.perf_counter(), time.process_time()
        self._lap = self._saved = self._start

    def update(self, state: State) -> None:
        """Write the times up to now into the state."""
        state.seconds = self._wall + time.perf_counter() - self._start
        state.cpu_seconds = self._cpu + time.process_time() - self._start_cpu

    def lap(self) -> float:
        """Seconds of training since the last lap, without those spent inside `paused`."""
        now = time.perf_counter()
        lap, self._lap = now - self._lap, now
        return lap

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the context from the lap."""
        start = time.perf_counter()
        yield
        self._lap += time.perf_counter() - start

    def is_time_to_save(self, seconds: float) -> bool:
        """Whether the last checkpoint is at least this old."""
        return time.perf_counter() - self._saved >= seconds

    def saved(self) -> None:
        """Note that a checkpoint was written now."""
        self._saved = time.perf_counter()
