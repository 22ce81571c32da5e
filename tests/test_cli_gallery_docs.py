"""What the how-to of the gallery shows is done as it stands there, from its first command to its last program."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lookalike.cli.main import app
from small_gallery import album, model_folder, picture

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "gallery.md").read_text()
ELSEWHERE = {
    "lookalike gallery add photos.gallery photos/ --watch",  # never ends: tests/gallery/test_watch.py
    "lookalike gallery create 'postgresql://ann@db.example/images#photos' --from photos.parquet",  # no such server
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page speaks of."""
    model_folder(tmp_path / "runs" / "pets" / "model")
    model_folder(tmp_path / "runs" / "next" / "model", seed=1)
    album(tmp_path / "photos")
    picture(tmp_path / "photo.jpg", 1000)
    picture(tmp_path / "another.jpg", 1001)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_does_what_it_is_shown_for(home: Path) -> None:
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert set(commands) >= ELSEWHERE
    said = {}
    for command in commands:
        if command in ELSEWHERE:
            continue
        words = shlex.split(command)
        assert words[1] == "gallery" or "--gallery" in words, command
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (command, result.exception)
        said[command] = result.stdout
    assert len(said) == 26
    assert "12" in said["lookalike gallery add photos.gallery photos/"]
    assert (home / "results.html").read_text().count("<img") == 11
    assert said["lookalike gallery create copy.gallery --from photos.parquet"] == "copy.gallery: 7 items\n"


def test_every_program_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    exec(compile(program, "gallery.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 ")
    assert len(lines) == 6
    assert all(re.match(r"-?\d\.\d{3} (cat|dog) \S+\.png$", line) for line in lines[1:])


def test_every_command_is_on_the_page() -> None:
    (group,) = [group for group in app.registered_groups if group.name == "gallery"]
    assert group.typer_instance is not None
    for command in group.typer_instance.registered_commands:
        assert f"lookalike gallery {command.name} " in PAGE
