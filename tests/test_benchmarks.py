"""The benchmark of the training step runs, with sizes that take seconds."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "training_step.py"
SMALL = ["--model", "simple_cnn", "--size", "16", "--rounds", "1", "--steps", "2"]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, PROGRAM, *SMALL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bare_step_and_the_loop_are_timed() -> None:
    printed = run("--precision", "float32")
    for name in ("bare step", "loop step"):
        (milliseconds,) = re.findall(rf"{name} +([\d.]+) ms", printed)
        assert float(milliseconds) > 0
