from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.errors import InputError
from lookalike.recipe import Recipe, Training
from lookalike.run import Run, current_commit, hardware

RECIPE = Recipe(name="small", training=Training(epochs=3))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "first", RECIPE)


def test_a_new_run_holds_its_recipe_and_opens_again(run: Run) -> None:
    assert Run.open(run.path).recipe == RECIPE
    assert [p.name for p in run.path.iterdir()] == ["recipe.yaml"]


def test_a_name_that_is_taken_is_refused_with_both_ways_out(run: Run) -> None:
    with pytest.raises(InputError, match=r"runs/first.*--resume.*--out"):
        Run.create(run.path.parent / "first", RECIPE)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    photo = tmp_path / "holiday" / "beach.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"photo")
    with pytest.raises(InputError, match="holiday"):
        Run.create(tmp_path / "holiday", RECIPE)
    assert photo.read_bytes() == b"photo"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 5000)
    with pytest.raises(InputError):
        Run.create(path, RECIPE)
    assert not list(tmp_path.iterdir())
    assert not Run(path).exists
    with pytest.raises(InputError):
        Run.open(path)


def test_the_name_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run.create(Path(), RECIPE).name == tmp_path.name
    assert Run(Path("runs/pets")).name == "pets"


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="runs/first: "):
        Run.create(tmp_path / "runs" / "first", RECIPE)


def test_opening_what_is_no_run_names_the_nearest(run: Run) -> None:
    with pytest.raises(InputError, match=r"frist.*'first'"):
        Run.open(run.path.parent / "frist")


def test_history_returns_what_was_logged(run: Run) -> None:
    records = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.1, "what": "épreuve"}]
    for record in records:
        run.log(record)
    assert Run.open(run.path).history() == records


def test_each_record_is_on_disk_as_soon_as_it_is_logged(run: Run) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from lookalike.run import Run\n"
        "run = Run.open(Path(sys.argv[1])); run.log({'step': 7}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert done.returncode == -9
    assert run.history() == [{"step": 7}]


@pytest.mark.parametrize("half", ['{"step": 2, "lo', '{"step": 2', "{"])
def test_a_half_written_last_line_is_left_out_and_replaced(run: Run, half: str) -> None:
    run.log({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write(half)
    assert run.history() == [{"step": 1}]
    run.log({"step": 2})
    assert run.history() == [{"step": 1}, {"step": 2}]


def test_a_half_written_only_line_is_left_out_and_replaced(run: Run) -> None:
    run.metrics_path.write_text('{"st')
    assert run.history() == []
    run.log({"step": 1})
    assert run.history() == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_not_passed_over(run: Run) -> None:
    run.metrics_path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl.*line 2"):
        run.history()


def test_truncate_drops_what_lies_past_a_step(run: Run) -> None:
    for step in range(1, 6):
        run.log({"step": step})
    run.log({"note": "no step"})
    run.truncate(3)
    assert run.history() == [{"step": 1}, {"step": 2}, {"step": 3}, {"note": "no step"}]


def _receipt(run: Run, results: dict[str, float], **extra: object) -> dict[str, object]:
    data = {"name": "built-in", "fingerprint": "ab"}
    run.write_receipt(results, seconds=12.345, data=data, seed=7, device="cpu", command="lookalike train x", **extra)
    return Run.open(run.path).receipt()


def test_the_receipt_says_how_the_results_came_about(run: Run) -> None:
    receipt = _receipt(run, {"top1": 0.5}, images_per_second=620.0)
    assert receipt["results"] == {"top1": 0.5}
    assert receipt["seed"] == 7
    assert receipt["seconds"] == 12.345
    assert receipt["images_per_second"] == 620.0
    assert receipt["versions"]["python"] == platform.python_version()
    assert receipt["versions"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", receipt["date"])
    assert receipt["hardware"]["gpu"] is None
    assert not list(run.path.glob("*.partial"))


def test_a_receipt_holds_finite_numbers_only_and_the_old_one_stays(run: Run) -> None:
    before = _receipt(run, {"top1": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        _receipt(run, {"top1": math.nan})
    assert run.receipt() == before


def test_an_extra_field_may_not_cover_one_of_the_receipts_own(run: Run) -> None:
    with pytest.raises(ValueError, match="'name'"):
        _receipt(run, {}, name="made up")


def test_a_run_without_a_receipt_is_not_finished(run: Run) -> None:
    with pytest.raises(InputError, match="--resume"):
        run.receipt()


def test_hardware_is_this_machine() -> None:
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert 0.1 < machine["memory_gib"] < 100_000
    json.dumps(machine)


def _commit_seen_by(source: Path) -> str:
    code = "from lookalike.run import current_commit; print(current_commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.check_output(["git", "-C", str(folder), *who, *arguments], text=True).strip()


def test_commit_is_that_of_the_sources_not_of_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(
        Path(sys.modules["lookalike"].__file__).parent,
        checkout / "lookalike",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "commit", "-q", "--allow-empty", "-m", "someone else's work")
    monkeypatch.chdir(tmp_path)
    assert _commit_seen_by(checkout) == "unknown"  # inside a checkout, but not part of it
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "now it is")
    head = _git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.chdir("/")
    assert _commit_seen_by(checkout) == head
    with (checkout / "lookalike" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert _commit_seen_by(checkout) == f"{head}+dirty"
    assert current_commit() == "unknown" or re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", current_commit())
