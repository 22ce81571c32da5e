"""What reaches a terminal: no control characters, no bytes that are not UTF-8; JSON is always UTF-8."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import lookalike
from lookalike.cli.console import can_show, echo, print_json, shown
from lookalike.cli.main import app
from lookalike.errors import InputError
from small_gallery import model_folder
from small_sets import class_folders, jpeg


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Output(io.TextIOWrapper):
    """Standard output in an encoding, and what has come there."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def bytes(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


NAME = "caf\udce9 \x1b]0;title\x07\x9b31m\r ünï 🙂\ttab\nline"
SHOWN = "caf\\xe9 \\x1b]0;title\\x07\\x9b31m\\x0d ünï 🙂\ttab\nline"


def test_text_is_shown_without_control_characters() -> None:
    assert shown(NAME) == SHOWN
    assert shown("\ud800") == "\\ud800"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_every_output_takes_every_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert can_show("█") == (encoding == "utf-8")
    echo(NAME)
    assert output.bytes().decode(encoding) == SHOWN.encode(encoding, "backslashreplace").decode(encoding) + "\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_json_is_utf8_and_says_the_same(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(encoding)
    monkeypatch.setattr(sys, "stdout", output)
    print_json({NAME: [NAME]})
    text = output.bytes().decode()
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(text)
    kept = NAME.replace("\udce9", "\\xe9")
    assert json.loads(text) == {kept: [kept]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


def test_predict_takes_a_folder_as_others_do(model: Path, tmp_path: Path) -> None:
    names = ("1.jpg", "b/2.jfif", "._1.jpg", "__MACOSX/._1.jpg", ".x/3.jpg", "4.heic", "5.heic")
    for name in names:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jpeg(1) if name in names[:2] else b"no picture")
    os.mkfifo(tmp_path / "d" / "pipe.jpg")
    (tmp_path / "d" / "b" / "up").symlink_to(tmp_path / "d")
    (tmp_path / "d" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(2))
    result = run("predict", tmp_path / "d", "--model", model, "--json")
    assert result.exit_code == 0, result.exception
    tree = json.loads(result.stdout_bytes.decode())
    assert [Path(one["image"]).name for one in tree["images"]] == ["1.jpg", "2.jfif", "caf\\xe9.jpg"]
    assert tree["passed_over"] == {".heic": 2}
    result = run("predict", tmp_path / "d", "--model", model)
    assert "2 .heic files were left alone" in result.stderr
    for name in ("1.jpg", "b/2.jfif", os.fsdecode(b"caf\xe9.jpg")):
        (tmp_path / "d" / name).unlink()
    error = run("predict", tmp_path / "d", "--model", model).exception
    assert isinstance(error, InputError)
    assert "2 .heic files" in error.message


def cli(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "lookalike.cli.main", *map(str, arguments)],
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )


def test_an_old_locale_a_bad_name_and_a_long_path_end_without_a_traceback(model: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", images=1)
    done = cli("predict", root / "cat" / "0.jpg", "--model", model, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"#" in done.stdout
    (root / "owl").rename(Path(os.fsdecode(os.fsencode(root) + b"/ow\x1b[31m\xeb")))
    done = cli("data", "check", root, "--json")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'ow\\x1b[31m\\xeb/0.jpg' is not UTF-8" in done.stderr
    assert b"Rename it" in done.stderr
    done = cli("data", "check", tmp_path / ("x" * 300))
    assert done.returncode == 2
    assert b"xxx" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_command_line_prints_in_one_way() -> None:
    found = []
    for path in sorted((Path(lookalike.__file__).parent / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "typer.echo", "click.echo"}:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_labels_of_a_gallery_steer_no_terminal(model: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", images=1)
    (root / "owl").rename(root / "ow\x1b[2Jl\x9b31m")
    (root / "cat" / "bad\x1b]0;x\x07.png").write_bytes(b"no picture")
    place = tmp_path / "g"
    assert run("gallery", "create", place, "--model", model).exit_code == 0
    said = run("gallery", "add", place, root)
    assert "bad\\x1b]0;x\\x07.png: not an image" in said.stdout
    found = run("gallery", "search", place, root / "cat" / "0.jpg", "--threshold", "none")
    assert "ow\\x1b[2Jl\\x9b31m" in found.stdout
    checked = run("data", "check", root)
    refused = run("gallery", "remove", place, "no\x1b[31mrow")
    assert isinstance(refused.exception, InputError)
    outputs = [said, found, checked, run("gallery", "info", place, "--failed", "--json")]
    assert not [text for one in outputs for text in (one.stdout, one.stderr) if {"\x1b", "\x9b", "\x07"} & set(text)]
