"""How threads wait: set before PyTorch is loaded, in commands and what they start; a user's own settings stay."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lookalike.hardware import SET_BY_USER, SHORT_WAITS, set_short_waits

CLEAN = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}


def printed(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=CLEAN | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


IN_A_COMMAND = """
import os, subprocess, sys
from lookalike.cli import main
def extra():
    child = subprocess.run([sys.executable, "-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))"],
                           capture_output=True, text=True)
    print("torch" in sys.modules, *map(os.environ.get, ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")), child.stdout.strip())
main.app.command("extra")(extra)
sys.argv = ["lookalike", "extra"]
main.run()
"""


def test_a_command_sets_it_before_pytorch_is_loaded_and_what_it_starts_inherits_it() -> None:
    assert printed(IN_A_COMMAND) == "False 1000 1 1000"


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("GOMP_SPINCOUNT", "7", "False 7 None 7"),
        ("GOMP_SPINCOUNT", "", "False  None"),
        ("OMP_WAIT_POLICY", "ACTIVE", "False None None None"),
        ("KMP_BLOCKTIME", "infinite", "False None infinite None"),
        ("KMP_LIBRARY", "turnaround", "False None None None"),
        ("OMP_NUM_THREADS", "1", "False 1000 1 1000"),  # says nothing about waiting; torchrun sets it
    ],
)
def test_what_a_user_says_about_waiting_stays(name: str, value: str, seen: str) -> None:
    assert printed(IN_A_COMMAND, **{name: value}) == seen


def test_it_says_whether_it_was_set() -> None:
    empty: dict[str, str] = {}
    assert set_short_waits(empty)
    assert empty == SHORT_WAITS
    assert not set_short_waits(empty)


IN_PYTHON = """
import os, sys
{before}
import lookalike
assert "GOMP_SPINCOUNT" not in os.environ and "KMP_BLOCKTIME" not in os.environ
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
            raise ImportError("seen")
sys.meta_path.insert(0, Watch())
try:
    lookalike.{name}
except ImportError as error:
    print(error)
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
"""


def test_in_python_it_holds_while_our_first_use_loads_pytorch() -> None:
    assert printed(IN_PYTHON.format(before="", name="load")).split("\n") == ["1000 1", "seen", "None None"]


def test_in_python_nothing_is_set_where_pytorch_is_there_already() -> None:
    before = "import types; sys.modules['torch'] = types.ModuleType('torch')"
    code = IN_PYTHON.format(before=before, name="load").replace("except ImportError", "except Exception")
    assert "1000" not in printed(code)
