"""The command that installs what is missing names where this copy of Lookalike came from."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from lookalike import extras
from lookalike.extras import install_command, missing

ROOT = Path(__file__).parent.parent
NAMED = r"""\.\[([a-z,-]+)\]'|install_command\(['"]([a-z-]+)|missing\([^)]*"([a-z-]+)"\)"""


@pytest.fixture
def pip_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: str(Path(sys.executable).with_name("pip")))


class Distribution:
    """What pip wrote down when it installed."""

    def __init__(self, said: object) -> None:
        self.said = said

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.said is None else json.dumps(self.said)


def test_from_the_sources_their_folder_is_named(pip_is_ours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("export") == "pip install -e '.[export]'"
    monkeypatch.chdir(ROOT.parent)
    assert install_command("serve", "export") == f"pip install -e {shlex.quote(f'{ROOT}[serve,export]')}"


@pytest.mark.parametrize(
    ("said", "requirement"),
    [
        ({"url": "file:///tmp", "dir_info": {}}, "/tmp[ray]"),
        ({"url": "file:///no/longer/there", "dir_info": {}}, ".[ray]"),
        (
            {"url": "https://example.org/lookalike", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}},
            "lookalike[ray] @ git+https://example.org/lookalike@0123abc",
        ),
        (None, ".[ray]"),
    ],
    ids=["folder", "folder gone", "git", "unknown"],
)
def test_an_installed_copy_names_where_it_came_from(
    said: object, requirement: str, pip_is_ours: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "PACKAGE", tmp_path / "site-packages" / "lookalike")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution(said))
    assert shlex.split(install_command("ray")) == ["pip", "install", requirement]


def test_the_pip_of_another_environment_is_not_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/somewhere/else/bin/pip")
    assert shlex.split(install_command("ray"))[:4] == [sys.executable, "-m", "pip", "install"]


def test_every_extra_that_is_named_exists() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = set()
    for path in texts:
        text = path.read_text()
        assert "lookalike[" not in text.replace('f"lookalike[', ""), f"{path}: Lookalike is on no package index"
        for words in re.findall(
            r"\.\[([a-z,-]+)\]'|install_command\(['\"]([a-z-]+)|missing\([^)]*\"([a-z-]+)\"\)", text
        ):
            named |= {extra for word in words for extra in word.split(",") if extra}
    assert named >= {"serve", "export", "postgres", "ray", "timm", "metric-learning"}
    assert named <= known.keys()


def test_the_error_says_both() -> None:
    error = missing("the package ray is not installed.", "ray")
    assert error.exit_code == 2
    assert error.message == "the package ray is not installed."
    assert install_command("ray") in error.remedy
