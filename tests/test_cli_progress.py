"""What a person sees while it trains, and how to go on when a signal has ended it."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys

import pytest
from rich.console import Console

from lookalike.cli.console import ProgressBars, resume_command, training_progress


def said_of(left: BaseException, *, stopped: bool = True) -> str:
    """What stands on a narrow console that is no terminal when a run ends this way."""
    console = Console(file=io.StringIO(), width=40)
    with contextlib.suppress(type(left)), training_progress(console) as callbacks:
        callbacks.message("train: 28 images of [my] pictures at 32 pixels, " + "a long line that stays one")
        assert callbacks.on_record is not None
        callbacks.on_record({"kind": "train", "step": 6, "epoch": 1.5, "loss": 2.5, "images_per_second": 100.0}, 12)
        if stopped:
            callbacks.on_record({"kind": "stopped", "step": 7}, 12)
        raise left
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    arguments = ["train", "quickstart", "training.resolution=[[0, 24], [0.5, 32]]", "--out", "my run"]
    monkeypatch.setattr(sys, "argv", ["lookalike", *arguments])
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    return arguments


@pytest.mark.parametrize("left", [KeyboardInterrupt(), SystemExit(143)])
def test_a_signal_is_answered_with_where_it_stopped_and_how_to_go_on(left: BaseException, command: list[str]) -> None:
    first, second = said_of(left).splitlines()
    assert first == "train: 28 images of [my] pictures at 32 pixels, a long line that stays one"
    words, _, line = second.partition("; continue with: ")
    assert words == "stopped at step 7 of 12"
    assert shlex.split(line) == ["lookalike", *command, "--resume"]


def test_before_the_first_step_and_after_the_last_no_step_is_named() -> None:
    said = said_of(KeyboardInterrupt(), stopped=False)
    assert said.splitlines()[1].startswith("stopped; continue with: lookalike train")


@pytest.mark.parametrize("left", [SystemExit(2), SystemExit(0), ValueError("a bug")])
def test_what_is_no_signal_is_not_said_to_be_one(left: BaseException) -> None:
    assert "stopped" not in said_of(left)


def test_of_several_processes_only_the_first_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "stopped" not in said_of(SystemExit(143))
    monkeypatch.setenv("RANK", "0")
    assert "continue with: torchrun ... -m lookalike.cli.main train quickstart" in said_of(SystemExit(143))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["train", "quickstart"], "lookalike train quickstart --resume"),
        (["train", "quickstart", "--resume", "--out", "x"], "lookalike train quickstart --resume --out x"),
        (["train", "--", "demo", "training.epochs=3"], "lookalike train --resume -- demo training.epochs=3"),
        (["reproduce", "tiny-imagenet", "--budget", "2h"], "lookalike reproduce tiny-imagenet --budget 2h"),
        (["demo"], "lookalike demo"),
    ],
)
def test_the_command_that_goes_on(given: list[str], wanted: str) -> None:
    assert resume_command(given) == wanted


def test_a_bar_shows_counts_and_rates_on_a_terminal_and_nothing_elsewhere() -> None:
    drawn = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=100, force_terminal=is_terminal)
        with ProgressBars(console) as bars:
            files, data = bars.bar("reading"), bars.bar("downloading", unit="bytes")
            for done in (1_000, 2_000):
                files(done, 4_000)
                data(1_000 * done, None)
        drawn[is_terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2,000/4,000" in drawn[True]
    assert "2.0 MB/?" in drawn[True]
    assert drawn[False] == ""
