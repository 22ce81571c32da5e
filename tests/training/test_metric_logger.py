"""Records go to the metrics file, the callback and the trackers, from the main process only."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lookalike.errors import InputError
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.metric_logger import MetricLogger, TensorBoardTracker

SCORES = {"top1": 0.25, "top5": 0.75, "nll": 1.5}
TRAIN = {"loss": 2.5, "lr": 0.125, "size": 64, "images_per_second": 123.5}


class Recorder:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_closed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append((dict(metrics), step))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def run(root: Path) -> Run:
    return Run.create(root / "run", Recipe())


def log_two(metrics: MetricLogger) -> None:
    metrics.train(10, 1 / 3, 2.5, 0.125, 64, 123.456)
    metrics.evaluate(10, 1 / 3, SCORES)


def test_a_record_goes_to_file_callback_and_tracker(run: Run) -> None:
    heard: list[tuple[dict[str, Any], int]] = []
    tracker = Recorder()
    log_two(MetricLogger(run, 40, on_record=lambda record, total: heard.append((record, total)), trackers=[tracker]))
    assert run.history() == [
        {"kind": "train", "step": 10, "epoch": 0.3333, **TRAIN},
        {"kind": "eval", "step": 10, "epoch": 0.3333, **SCORES},
    ]
    assert heard == [(record, 40) for record in run.history()]
    assert tracker.logged == [
        ({"train/epoch": 0.3333, **{f"train/{key}": value for key, value in TRAIN.items()}}, 10),
        ({"eval/epoch": 0.3333, **{f"eval/{key}": value for key, value in SCORES.items()}}, 10),
    ]


def test_other_processes_log_nothing(run: Run) -> None:
    tracker = Recorder()
    metrics = MetricLogger(run, 40, is_main_process=False, on_record=lambda record, total: 1 / 0, trackers=[tracker])
    log_two(metrics)
    metrics.stopped(10)
    assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]
    assert not tracker.logged


def test_only_the_callback_learns_that_training_was_stopped(run: Run) -> None:
    heard: list[tuple[dict[str, Any], int]] = []
    tracker = Recorder()
    MetricLogger(run, 40, on_record=lambda record, total: heard.append((record, total)), trackers=[tracker]).stopped(7)
    assert heard == [({"kind": "stopped", "step": 7}, 40)]
    assert run.history() == []
    assert tracker.logged == []


def test_tensorboard_reads_what_was_logged_and_after_a_resume_each_step_once(run: Run, tmp_path: Path) -> None:
    def log_steps(first: int, last: int, extra: float) -> None:
        tracker = TensorBoardTracker(tmp_path / "events")
        metrics = MetricLogger(run, 6, trackers=[tracker])
        for step in range(first, last + 1):
            metrics.train(step, step / 6, step + extra, 0.125, 64, 100.0)
        metrics.evaluate(last, last / 6, SCORES)
        tracker.close()

    log_steps(1, 4, 0)
    time.sleep(1.01)  # event files are read in the order of their names, which begin with the second
    log_steps(3, 6, 0.5)  # resumed from a checkpoint of step 2
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/top1")] == [(6, 0.25)]
    assert {event.value for event in events.Scalars("train/lr")} == {0.125}


def test_without_the_package_tensorboard_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install .*\[tensorboard\]"):
        TensorBoardTracker(tmp_path)
