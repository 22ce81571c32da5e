"""What is said while training: in the metrics, in TensorBoard and to whoever watches, by the leading process alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.metric_logger import MetricLogger

SCORES = {"top1": 0.25, "top5": 0.75, "nll": 1.5}


def test_a_record_is_said_in_three_places(root: Path) -> None:
    run = Run.create(root, "run", Recipe())
    heard: list[tuple[dict[str, Any], int]] = []
    with MetricLogger(run, True, lambda record, total: heard.append((record, total)), 40, since=0) as events:
        events.train(10, 1 / 3, 2.5, 0.125, 64, 123.456)
        events.evaluate(10, 1 / 3, SCORES)
    train = {"loss": 2.5, "lr": 0.125, "size": 64, "images_per_second": 123.5}
    assert run.history() == [
        {"kind": "train", "step": 10, "epoch": 0.3333, **train},
        {"kind": "eval", "step": 10, "epoch": 0.3333, **SCORES},
    ]
    assert heard == [(record, 40) for record in run.history()]
    seen = EventAccumulator(str(run.events_dir)).Reload()
    for kind, values in (("train", train), ("eval", SCORES)):
        for key, value in values.items():
            (event,) = seen.Scalars(f"{kind}/{key}")
            assert (event.step, event.value) == (10, value)


def test_a_process_that_does_not_lead_says_nothing(root: Path) -> None:
    run = Run.create(root, "run", Recipe())
    with MetricLogger(run, False, lambda record, total: 1 / 0, 40, since=0) as events:
        events.train(10, 1.0, 2.5, 0.1, 64, 100.0)
        events.evaluate(10, 1.0, SCORES)
        events.stopped(10)
    assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]


def test_that_it_is_stopped_is_told_and_written_nowhere(root: Path) -> None:
    run = Run.create(root, "run", Recipe())
    heard: list[tuple[dict[str, Any], int]] = []
    with MetricLogger(run, True, lambda record, total: heard.append((record, total)), 40, since=0) as events:
        events.stopped(7)
    assert heard == [({"kind": "stopped", "step": 7}, 40)]
    assert run.history() == []
    assert EventAccumulator(str(run.events_dir)).Reload().Tags()["scalars"] == []
    with MetricLogger(run, True, None, 40, since=0) as events:
        events.stopped(7)


def test_after_a_resume_tensorboard_shows_each_step_once(root: Path) -> None:
    run = Run.create(root, "run", Recipe())
    with MetricLogger(run, True, None, 6, since=0) as events:
        for step in range(1, 5):  # the checkpoint was written after step 2
            events.train(step, step / 6, float(step), 0.1, 64, 100.0)
    time.sleep(1.01)  # files of events are read in the order of their names, which begin with the second
    with MetricLogger(run, True, None, 6, since=2) as events:
        for step in range(3, 7):
            events.train(step, step / 6, step + 0.5, 0.1, 64, 100.0)
    seen = EventAccumulator(str(run.events_dir)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in seen] == [(1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5), (6, 6.5)]
