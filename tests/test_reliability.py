"""The page of what was tried says what the script wrote, and names tests that are there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
RECORDS = json.loads((ROOT / "docs" / "reliability.json").read_text())["records"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """`benchmarks/reliability.py`, in a process of one thread: others do not come along into the children it forks."""
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks" / "reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def test_the_table_is_what_the_script_wrote(script: ModuleType) -> None:
    assert script.table(RECORDS) in PAGE


def test_what_was_found_is_of_the_scripts_parts_and_nothing_was_wrong(script: ModuleType) -> None:
    assert {record["part"] for record in RECORDS} <= set(script.PARTS)
    assert [record for record in RECORDS if record["faults"] or not record["times"]] == []


def test_the_tests_that_the_page_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_work_is_stopped_looked_at_and_done_again(script: ModuleType, tmp_path: Path) -> None:
    bench = script.Bench(tmp_path, 1, 0)
    (removing,) = (work for work in script.works(bench) if work.name == "gallery remove")
    start, end, _ = script.undisturbed(bench, removing, tmp_path / "trial")
    assert len(start) == 96
    assert len(end) == 32
    trial = script.Trial(bench, removing, tmp_path / "trial")
    assert trial.fault_after(script.Child("killed", []), start, end) == ""
    trial = script.Trial(bench, removing, tmp_path / "trial")
    assert "was not" in trial.fault_after(script.Child("done", []), start, end)
    assert "96 rows were acknowledged" not in trial.fault_after(script.Child("killed", ["kept 96"]), start, end)
    assert "97 rows" in script.Trial(bench, removing, tmp_path / "trial").fault_after(
        script.Child("killed", ["kept 97"]), start, end
    )
    (tmp_path / "trial" / "g" / "gallery.db").write_bytes(b"damaged")
    assert "cannot be read" in trial.fault_after(script.Child("killed", []), start, end)


def test_a_kill_counts_from_the_first_word_and_hits_what_has_not_ended(script: ModuleType) -> None:
    def slow(say: Callable[[str], None]) -> None:
        time.sleep(0.3)  # longer than the kill waits
        say("begun")
        time.sleep(60)

    child = script.in_child(slow, kill_after=0.05)
    assert (child.end, child.said) == ("killed", ["begun"])
    assert script.in_child(lambda say: say("begun"), kill_after=60).end == "done"
