"""What a person sees of the command line as a whole: help, version, errors, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from lookalike import __version__, recipe
from lookalike.cli.main import app
from lookalike.recipe import Recipe

VERBS = {
    "data",
    "gallery",
    "models",
    "recipes",
    "train",
    "fit",
    "evaluate",
    "predict",
    "export",
    "serve",
    "reproduce",
    "demo",
    "embed",
}
RUN = [sys.executable, "-m", "lookalike.cli.main"]


def lookalike(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False)


def with_verb(body: str) -> list[str]:
    """A process that runs the real command line with one more verb, `extra`, of this body."""
    code = (
        "import errno, os, sys, time\nfrom lookalike.cli import main\nfrom lookalike.errors import *\n"
        f"def extra():\n    {body}\n"
        "main.app.command('extra')(extra)\nsys.argv = ['lookalike', 'extra']\nmain.run()"
    )
    return [sys.executable, "-c", code]


def test_every_verb_is_there_with_a_line_of_help() -> None:
    command = get_command(app)
    assert set(command.commands) == VERBS
    for verb in command.commands.values():
        assert verb.get_short_help_str()


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_version() -> None:
    done = lookalike("--version")
    assert (done.returncode, done.stdout) == (0, f"lookalike {__version__}\n")


def test_a_misspelt_verb_is_bad_input_and_the_right_one_is_named() -> None:
    done = lookalike("evalute")
    assert done.returncode == 2
    assert "evaluate" in done.stderr


def test_a_persons_mistake_is_two_lines_and_no_traceback() -> None:
    done = lookalike("recipes", "nothing-like-it")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: no recipe named 'nothing-like-it'.",
        "  'lookalike recipes' lists them.",
    ]


def test_a_failure_that_is_no_bad_input_is_code_1() -> None:
    body = "raise TrainingError('the loss is not finite at step 3.', 'Lower optimizer.lr.')"
    done = subprocess.run(with_verb(body), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: the loss is not finite at step 3.\n  Lower optimizer.lr.\n"


def test_a_bug_keeps_its_traceback() -> None:
    for body, words in (("[].pop()", "IndexError: pop from empty list"), ("next(iter([]))", "StopIteration")):
        done = subprocess.run(with_verb(body), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_quietly(number: signal.Signals, code: int) -> None:
    command = with_verb("print('ready', flush=True); time.sleep(60)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in complaints


@pytest.mark.parametrize("body", ["bytearray(1 << 62)", "import torch; torch.empty(1 << 60)"])
def test_a_full_memory_is_said(body: str) -> None:
    done = subprocess.run(with_verb(body), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: not enough memory.\n  ")


needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")


@needs_full_disk
def test_a_full_disk_is_said() -> None:
    body = "open('/dev/full', 'w').write('x' * 100_000)"
    done = subprocess.run(with_verb(body), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("no space left on the disk.")


def test_a_failing_disk_is_said_with_its_file() -> None:
    body = "raise OSError(errno.EIO, os.strerror(errno.EIO), 'photos.gallery/graph')"
    done = subprocess.run(with_verb(body), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: photos.gallery/graph: the disk failed (Input/output error).\n  ")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("PermissionError(13, 'Permission denied', 'locked/pictures')", "permissions"),
        ("PermissionError(1, 'Operation not permitted', 'locked/pictures')", "permissions"),
        ("OSError(40, 'Too many levels of symbolic links', 'locked/pictures')", "loop"),
    ],
)
def test_a_file_system_that_refuses_is_bad_input_wherever_it_does(error: str, remedy: str) -> None:
    done = subprocess.run(with_verb(f"raise {error}"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("error: locked/pictures: ")
    assert remedy in second


@pytest.mark.parametrize(
    "words", [["data", "check", ""], ["train", "quickstart", "--data", ""], ["gallery", "add", "g", "", "photos"], [""]]
)
def test_an_empty_argument_does_not_mean_the_current_folder(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*RUN, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "is empty" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_of_the_system_keeps_its_traceback() -> None:
    done = subprocess.run(with_verb("open('nowhere')"), capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert done.returncode == 1


BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
PRINTERS = [[*RUN, "recipes"], with_verb("print('buffered until the end')")]


@needs_full_disk
@pytest.mark.parametrize("command", PRINTERS, ids=["echo", "print"])
def test_output_into_a_full_disk_is_said_once(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left")


@pytest.mark.parametrize("command", PRINTERS, ids=["echo", "print"])
def test_a_reader_that_goes_away_is_no_news(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


def test_recipes_lists_what_is_shipped_with_a_line_about_each() -> None:
    lines = CliRunner().invoke(app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in lines] == recipe.shipped()
    assert all(line.endswith(recipe.load(line.split()[0]).about) for line in lines)


def test_recipes_prints_one_resolved_with_its_overrides() -> None:
    name = recipe.shipped()[0]
    output = CliRunner().invoke(app, ["recipes", name, "training.epochs=3"]).output
    assert Recipe.from_yaml(output) == recipe.load(name, ["training.epochs=3"])


ABORTS = """
import atexit, ctypes, sys, time
from lookalike.cli import main
c = ctypes.CDLL(None)
c.__cxa_atexit(ctypes.cast(c.abort, ctypes.c_void_p), None, None)  # as a library whose threads still run
atexit.register(lambda: print("tidied", flush=True))
def app():
    print("buffered", end=" ")
    print("ready", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)
main.app = app
main.run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc for an abort")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_leaves_with_its_code_whatever_its_libraries_do(number: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", ABORTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.send_signal(number)
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == code, wrong
    assert said == b"buffered tidied\n"
    assert wrong == b""
